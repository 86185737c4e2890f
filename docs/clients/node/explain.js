// Explain from Node: pure JavaScript, the .proto files are read at run time.
//
// Install:  npm ci --prefix docs/clients/node
// Run:      node docs/clients/node/explain.js localhost:8001 [MODEL [FILE.npy]]
"use strict";

const { createHash } = require("node:crypto");
const { readFileSync } = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, model = "digits_cnn", file = "models/digits_cnn/samples/three.npy"] = process.argv.slice(2);
const protos = process.env.ONNXPLAIN_PROTOS || path.join(__dirname, "..", "..", "..", "protos");
const definition = loader.loadSync("onnxplain/v1/explainer.proto", { includeDirs: [protos], defaults: true, keepCase: true });
const { ExplainerService } = grpc.loadPackageDefinition(definition).onnxplain.v1;

const pixels = readFileSync(file).subarray(-4 * 28 * 28); // float32, little-endian: the end of an .npy file are its numbers
const request = {
  model: { name: model },
  inputs: [{ name: "input", datatype: "FP32", shape: [1, 1, 28, 28], raw: pixels }],
  targets: [{ expression: "predicted" }],
};
const client = new ExplainerService(address, grpc.credentials.createInsecure());
client.Explain(request, { deadline: Date.now() + 30_000 }, (error, reply) => {
  client.close();
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
    return;
  }
  const { raw, shape } = reply.attributions[0].relevance;
  const values = Array.from({ length: raw.length / 4 }, (_, n) => raw.readFloatLE(4 * n));
  const strongest = [...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, 3);
  console.log("class", reply.targets[0].name);
  console.log("relevance", shape.join("x"), "sha256", createHash("sha256").update(raw).digest("hex"));
  console.log("strongest", ...strongest);
});
