"""Laws of who may call: scopes, tokens, their file."""

from __future__ import annotations

import asyncio
import hashlib

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from intercepted import (
    COMPILE,
    EXPLAIN,
    LIVE,
    SECRET,
    counted,
    intercepted,
    refused,
)

from onnxplain.errors import Busy, Denied, InputError, Unauthenticated, UsageError
from onnxplain.server import tokens
from onnxplain.server.guard import Guard
from onnxplain.server.rpc.interceptor import Interceptor
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.server.tokens import METHOD_SCOPES, SCOPES, Tokens, read_tokens, scope_of
from onnxplain.v1 import explainer_pb2
from onnxplain.wire import inference


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens.toml"

    def write(text, mode=0o600):
        fresh = tmp_path / "new.toml"
        fresh.write_text(text)
        fresh.chmod(mode)
        fresh.replace(path)
        return path

    return write


def every_method() -> list[str]:
    services = [
        inference.POOL.FindServiceByName(inference.INFERENCE),
        *explainer_pb2.DESCRIPTOR.services_by_name.values(),
        *health_pb2.DESCRIPTOR.services_by_name.values(),
        *reflection_pb2.DESCRIPTOR.services_by_name.values(),
    ]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


@pytest.mark.parametrize("method", every_method())
def test_every_method_of_every_service_has_a_scope(method):
    assert method in METHOD_SCOPES and METHOD_SCOPES[method] in (None, *SCOPES)


def test_a_method_that_is_not_listed_needs_the_most():
    assert scope_of("/grpc.channelz.v1.Channelz/GetServers") == "admin"


def test_a_token_lets_in_for_its_scopes_only(token_file):
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    path = token_file(
        f'[tokens.ann]\nsha256 = "{digest}"\nscopes = ["infer", "explain"]\n', 0o644
    )  # a digest may be read

    async def main():
        async with intercepted(Interceptor(Guard(Metrics(), Tokens(path)))) as (echo, channel, metrics):
            explain, compile_ = channel.unary_unary(EXPLAIN), channel.unary_stream(COMPILE)
            none = await refused(explain(b"x"))
            assert none.code() is grpc.StatusCode.UNAUTHENTICATED and "Bearer" in none.details()
            assert await explain(b"x", metadata=[("authorization", f"Bearer {SECRET}")]) == b"x"
            assert await explain(b"x", metadata=[("authorization", f"bearer  {SECRET}")]) == b"x"
            assert echo.calls[0].caller.name == "ann"
            for bad in (f"Bearer {SECRET}x", "Bearer ", SECRET, f"Basic {SECRET}", ""):
                error = await refused(explain(b"x", metadata=[("authorization", bad)]))
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            twice = [("authorization", f"Bearer {SECRET}")] * 2
            assert (await refused(explain(b"x", metadata=twice))).code() is grpc.StatusCode.UNAUTHENTICATED
            denied = await refused(compile_(b"x", metadata=[("authorization", f"Bearer {SECRET}")]).read())
            assert denied.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "'export'" in denied.details() and "infer, explain" in denied.details()
            assert await channel.unary_unary(LIVE)(b"probe") == b"probe"
            assert len(echo.calls) == 3 and counted(metrics, "UNAUTHENTICATED") >= 5

    asyncio.run(main())


def test_a_stranger_is_turned_away_before_his_message_is_read(token_file):
    path = token_file(f'[tokens.ann]\ntoken = "{SECRET}"\nscopes = ["explain"]\n')
    parsed = []

    async def main():
        async with intercepted(
            Interceptor(Guard(Metrics(), Tokens(path))), parse=lambda raw: parsed.append(raw) or raw
        ) as (
            _,
            channel,
            _m,
        ):
            error = await refused(channel.unary_unary(EXPLAIN)(bytes(32 * 2**20)))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED and not parsed

    asyncio.run(main())


def test_tokens_follow_their_file_and_the_last_good_ones_stay(token_file, monkeypatch, caplog):
    monkeypatch.setattr(tokens, "LOOK_SECONDS", 0.0)
    table = Tokens(token_file(f'[tokens.ann]\ntoken = "{SECRET}"\nscopes = ["infer"]\n'))
    token_file("[tokens.ann")
    assert table.caller([f"Bearer {SECRET}"]).name == "ann"
    assert "stay as they were" in caplog.text
    token_file(f'[tokens.bob]\ntoken = "{SECRET}2"\nscopes = ["admin"]\n')
    assert table.caller([f"Bearer {SECRET}2"]).name == "bob"
    with pytest.raises(Unauthenticated):
        table.caller([f"Bearer {SECRET}"])
    table.path.unlink()
    assert table.caller([f"Bearer {SECRET}2"]).name == "bob"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_tokens_that_others_can_read_are_refused(token_file, mode):
    with pytest.raises(InputError, match="chmod 600"):
        read_tokens(token_file(f'[tokens.ann]\ntoken = "{SECRET}"\nscopes = ["infer"]\n', mode))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1",
        "[tokens]",
        "[tokens.a]\nscopes = ['infer']",
        f"[tokens.a]\ntoken = '{SECRET}'",
        f"[tokens.a]\ntoken = '{SECRET}'\nscopes = ['root']",
        f"[tokens.a]\ntoken = '{SECRET}'\nscopes = []",
        f"[tokens.a]\ntoken = '{SECRET}'\nsha256 = '{'0' * 64}'\nscopes = ['infer']",
        "[tokens.a]\ntoken = 'short'\nscopes = ['infer']",
        "[tokens.a]\ntoken = 'with spaces in the middle'\nscopes = ['infer']",
        "[tokens.a]\nsha256 = 'abc'\nscopes = ['infer']",
        "[tokens.a]\nsha256 = 7\nscopes = ['infer']",
        f"[tokens.a]\ntoken = '{SECRET}'\nscopes = ['infer']\nextra = 1",
        f"[tokens.a]\ntoken = '{SECRET}'\nscopes = ['infer']\n[tokens.b]\ntoken = '{SECRET}'\nscopes = ['infer']",
    ],
)
def test_a_wrong_token_file_is_one_line_that_never_shows_a_token(token_file, text):
    with pytest.raises(InputError) as caught:
        read_tokens(token_file(text))
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)


def test_require_names_what_the_caller_has():
    with pytest.raises(Denied, match=r"'admin'; it has: infer, explain"):
        tokens.Caller("ann", frozenset({"explain", "infer"})).require("admin")


LIMITED = f'''
[tokens.ann]
token = "{SECRET}"
scopes = ["infer"]
rows_per_second = 100
burst = 200
share = 2
priority = 2
'''


def test_a_token_has_a_rate_a_share_and_a_most_urgent_priority(token_file):
    (ann,) = read_tokens(token_file(LIMITED)).values()
    assert (ann.share, ann.most_urgent, ann.usual_priority) == (2.0, 2, 5)
    assert (ann.rate.rows_per_second, ann.rate.burst) == (100.0, 200.0)
    (bob,) = read_tokens(token_file(f'[tokens.bob]\ntoken = "{SECRET}"\nscopes = ["infer"]')).values()
    assert (bob.share, bob.rate, bob.most_urgent) == (1.0, None, 5)
    (late,) = read_tokens(token_file(LIMITED.replace("priority = 2", "priority = 8"))).values()
    assert late.usual_priority == 8


@pytest.mark.parametrize(
    "old, new",
    [
        ("share = 2", "share = 0"),
        ("share = 2", 'share = "2"'),
        ("share = 2", "share = nan"),
        ("priority = 2", "priority = 0"),
        ("priority = 2", "priority = 11"),
        ("priority = 2", "priority = true"),
        ("rows_per_second = 100", "rows_per_second = -1"),
        ("rows_per_second = 100", ""),  # burst alone
        ("burst = 200", "burst = inf"),
        ("share = 2", "shares = 2"),
    ],
)
def test_limits_that_make_no_sense_are_refused_by_name(token_file, old, new):
    with pytest.raises(InputError, match=old.split()[0].split("_")[0].replace("rows", "rows|burst")):
        read_tokens(token_file(LIMITED.replace(old, new)))


def test_a_priority_is_asked_for_within_what_the_token_may(token_file):
    (ann,) = read_tokens(token_file(LIMITED)).values()
    for priority in (0, 2, 10):
        ann.require_priority(priority)
    with pytest.raises(Denied, match="'ann' may ask for priority 2"):
        ann.require_priority(1)
    with pytest.raises(UsageError, match="priority 11"):
        ann.require_priority(11)
    tokens.ANYONE.require_priority(1)  # without a token file


def test_reading_the_file_again_gives_nobody_his_rows_anew(token_file, monkeypatch):
    monkeypatch.setattr(tokens, "LOOK_SECONDS", 0.0)
    watched = Tokens(token_file(LIMITED))
    watched.caller([f"Bearer {SECRET}"]).rate.take(190)
    token_file(LIMITED.replace("share = 2", "share = 3"))
    again = watched.caller([f"Bearer {SECRET}"])
    assert again.share == 3.0
    with pytest.raises(Busy):
        again.rate.take(100)
    token_file(LIMITED.replace("burst = 200", "burst = 300"))
    watched.caller([f"Bearer {SECRET}"]).rate.take(300)
