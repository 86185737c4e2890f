"""Run the Dockerfile's steps one by one in roots of their own, where no container daemon can be had.

    mmdebstrap --variant=minbase trixie slim && python container/without_daemon.py slim WORK RUNTIME=cpu

slim: an unpacked base, in place of every image that the Dockerfile takes from elsewhere. WORK: a new folder; the
image's root will be WORK/root, and its size is printed. RUNTIME=cpu: build arguments. CA_BUNDLE in the environment: a
file of authorities that pip trusts while it builds. For root on Linux; it mounts /dev and /proc while a step runs. It
knows what our Dockerfile uses and refuses the rest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT = Path(__file__).resolve().parents[1]
IGNORED = shutil.ignore_patterns("__pycache__")  # as .dockerignore says
KEPT = ("USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD")
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass
class Stage:
    """An image in the making. config: CMD and the like, as they were written last."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    folder: str = "/"
    config: dict[str, str] = field(default_factory=dict)


def steps(text: str) -> list[tuple[str, str]]:
    """(instruction, its words) of a Dockerfile, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


class Build:
    """slim: the base. work: where the roots are made. arguments: of the build."""

    def __init__(self, slim: Path, work: Path, arguments: dict[str, str]):
        self.slim, self.work, self.given = slim, work, arguments
        self.arguments: dict[str, str] = {}
        self.stages: dict[str, Stage] = {}
        self.stage: Stage | None = None

    def run(self, text: str) -> Stage:
        """All steps; the last stage."""
        for word, rest in steps(text):
            print(f"{word} {rest[:150]}", flush=True)
            if word in KEPT:
                self._now.config[word] = rest
            else:
                getattr(self, f"on_{word.lower()}")(rest)
        assert self.stage is not None
        return self.stage

    def on_arg(self, rest: str) -> None:
        """A build argument, or a default of one."""
        name, _, default = rest.partition("=")
        self.arguments[name] = self.given.get(name, self.arguments.get(name, default))

    def on_from(self, rest: str) -> None:
        """A stage: a copy of another's root, or of the base."""
        image, _, name = self._said(rest).partition(" AS ")
        below = self.stages.get(image)
        root = self.work / (name or "root")
        subprocess.run(["cp", "-a", "--reflink=auto", str(below.root if below else self.slim), str(root)], check=True)
        self.stage = Stage(root) if below is None else Stage(root, dict(below.environment), below.folder)
        self.stages[name or "root"] = self.stage

    def on_env(self, rest: str) -> None:
        """Variables of the steps that follow and of the image."""
        for pair in self._said(rest).split():
            name, _, value = pair.partition("=")
            self._now.environment[name] = value

    def on_workdir(self, rest: str) -> None:
        """The folder of the steps that follow."""
        self._now.folder = rest
        (self._now.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def on_copy(self, rest: str) -> None:
        """Files of the checkout, or of another stage."""
        words = rest.split()
        base = CONTEXT
        if words[0].startswith("--from="):
            base = self.stages[words.pop(0).removeprefix("--from=")].root
        *sources, target = words
        place = self._now.root / (target if target.startswith("/") else f"{self._now.folder}/{target}").lstrip("/")
        for source in (base / source.lstrip("/") for source in sources):
            if source.is_dir():
                ignore = IGNORED if base == CONTEXT else None
                shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True, ignore=ignore)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place / source.name)

    def on_run(self, rest: str) -> None:
        """A command in the root."""
        with mounted(self._now.root) as authorities:
            environment = {
                **self.arguments,
                **self._now.environment,
                **authorities,
                "DEBIAN_FRONTEND": "noninteractive",
            }
            command = ["chroot", str(self._now.root), "/bin/sh", "-c", f"cd {self._now.folder} && {rest}"]
            subprocess.run(command, env=environment, check=True)

    @property
    def _now(self) -> Stage:
        assert self.stage is not None, "the Dockerfile does not begin with FROM"
        return self.stage

    def _said(self, text: str) -> str:
        known = {**self.arguments, **(self.stage.environment if self.stage else {})}
        return VARIABLE.sub(lambda match: known.get(match[1] or match[2], ""), text)


@contextmanager
def mounted(root: Path):
    """What a step needs beside the root: devices, processes, names, authorities. Yields variables."""
    trusted, resolver = root / "tmp/authorities.pem", root / "etc/resolv.conf"
    for name in ("dev", "proc"):
        subprocess.run(["mount", "--bind", f"/{name}", str(root / name)], check=True)
    shutil.copy("/etc/resolv.conf", resolver)
    variables = {}
    if os.environ.get("CA_BUNDLE"):
        shutil.copy(os.environ["CA_BUNDLE"], trusted)
        variables = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"), "/tmp/authorities.pem")
    try:
        yield variables
    finally:
        trusted.unlink(missing_ok=True)
        resolver.write_text("")
        for name in ("proc", "dev"):
            subprocess.run(["umount", str(root / name)], check=True)


if __name__ == "__main__":
    slim, work, *given = sys.argv[1:]
    Path(work).mkdir(parents=True)
    built = Build(Path(slim), Path(work), dict(pair.split("=", 1) for pair in given)).run(
        (CONTEXT / "Dockerfile").read_text()
    )
    size = int(
        subprocess.run(["du", "-sxB1", str(built.root)], capture_output=True, text=True, check=True).stdout.split()[0]
    )
    print(json.dumps({"root": str(built.root), "bytes": size, "env": built.environment, **built.config}, indent=1))
