// What a user of @grpc/grpc-js calls; record.py keeps the bytes it sends. Usage: node ask_node.js HOST:PORT PROTOS
"use strict";

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protos] = process.argv.slice(2);
const options = { includeDirs: [protos], defaults: true, keepCase: true };
const load = (file) => grpc.loadPackageDefinition(loader.loadSync(file, options));
const open = grpc.credentials.createInsecure();
const oip = new (load("inference/grpc_service.proto").inference.GRPCInferenceService)(address, open);
const v1 = new (load("onnxplain/v1/explainer.proto").onnxplain.v1.ExplainerService)(address, open);

const numbers = [5.1, 3.5, 1.4, 0.2, 6.7, 3.0, 5.2, 2.3];
const raw = Buffer.from(new Float32Array(numbers).buffer);
const call = (client, method, request) =>
  new Promise((done) => client[method](request, { deadline: Date.now() + 30_000 }, (error, reply) => done(error || reply)));
const input = { name: "X", datatype: "FP32", shape: [2, 4] };
const tensor = { name: "X", datatype: "FP32", shape: [2, 4], raw };

async function main() {
  await call(oip, "ServerReady", {});
  await call(oip, "ModelMetadata", { name: "iris_mlp" });
  await call(oip, "ModelInfer", { model_name: "iris_mlp", inputs: [input], raw_input_contents: [raw] });
  await call(oip, "ModelInfer", { model_name: "iris_mlp", id: "typed", inputs: [{ ...input, contents: { fp32_contents: numbers } }] });
  await call(oip, "ModelInfer", {
    model_name: "iris_mlp.explain",
    parameters: { onnxplain_target: { string_param: "2" } },
    inputs: [{ ...input, contents: { fp32_contents: numbers } }],
  });
  await call(v1, "GetExplainability", { model: { name: "iris_mlp" } });
  await call(v1, "ListRecipes", { page_size: 5 });
  await call(v1, "Explain", { model: { name: "iris_mlp" }, inputs: [tensor], targets: [{ indices: { index: [2] } }] });
  await call(v1, "Explain", {
    model: { name: "iris_mlp", version: "1" },
    request_id: "one",
    inputs: [tensor],
    targets: [{ arg_max: { k: 2 } }, { expression: "virginica" }, { contrast: { positive: 0, negatives: [1] } }],
    recipe: { name: "gradient" },
    diagnostics: "DIAGNOSTICS_OFF",
  });
  await call(v1, "Explain", { model: { name: "iris_mlp" }, inputs: [tensor], targets: [{ indices: { index: [3] } }] });
  await new Promise((done) => {
    const stream = v1.ExplainStream();
    stream.on("data", () => {});
    stream.on("end", done);
    stream.on("error", done);
    const chunked = { name: "X", datatype: "FP32", shape: [2, 4], chunked: { byte_size: 32 } };
    stream.write({ request: { model: { name: "iris_mlp" }, request_id: "pieces", inputs: [chunked], targets: [{ expression: "2" }] } });
    stream.write({ chunk: { key: "X", offset: 0, data: raw.subarray(0, 20) } });
    stream.write({ chunk: { key: "X", offset: 20, data: raw.subarray(20) } });
    stream.end();
  });
  oip.close();
  v1.close();
}

main();
