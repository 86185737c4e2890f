"""The dashboard and the alerts name nothing that this server does not tell, and no label that it does not have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from onnxplain.server.telemetry.metrics import Metrics

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
SCRAPED = {"job", "instance"}  # Prometheus' own labels
METRIC = re.compile(r"\b((?:onnxplain|grpc|nv|process|python)_[a-z0-9_]+)\b(\{[^}]*\})?")
GROUPS = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
WORDS = {"sum", "max", "rate", "increase", "changes", "time", "histogram_quantile", "by", "on", "and"}


def told() -> dict[str, set[str]]:
    """Every sample's name with its labels, of a server in which everything has happened."""
    metrics = Metrics()
    metrics.count_dropped_lines(lambda: 0)
    metrics.sessions_budget(1)
    method = metrics.method("unary", "s", "m")
    method.started.inc()
    method.ended("OK", 0.1)
    metrics.model_loaded("m", 1)
    metrics.queue("m", 1, 1)
    metrics.conserved("m", 0.1)
    metrics.evicted("m")
    metrics.refused("m", "full")
    for explains in (False, True):
        metrics.run("m", 0.1, 0.1, 1, 1, explains)
        metrics.request("m", explains, "OK", 0.1)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


TOLD = told()
PANELS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
EXPRESSIONS = PANELS + [(rule["alert"], rule["expr"]) for rule in ALERTS]


@pytest.mark.parametrize("title, expression", EXPRESSIONS, ids=[title for title, _ in EXPRESSIONS])
def test_every_metric_and_label_of_an_expression_is_told(title, expression):
    metrics = METRIC.findall(GROUPS.sub("", expression))
    assert metrics, expression
    for name, selector in metrics:
        assert name in TOLD, name
        asked = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", selector))
        assert asked <= TOLD[name] | SCRAPED, (name, asked)
    known = set.union(*(TOLD[name] for name, _ in metrics)) | SCRAPED
    for group in GROUPS.findall(expression):
        assert set(re.split(r"\s*,\s*", group.strip())) <= known, group
    bare = re.sub(r"\"[^\"]*\"|\{[^}]*\}|\[[^]]*\]|\([^()]*\)(?=\s*\()", "", GROUPS.sub("", expression))
    assert set(re.findall(r"[a-z][a-z0-9_]+", bare)) <= WORDS | set(TOLD), bare
    assert expression.count("(") == expression.count(")")


def test_the_dashboard_can_be_imported_anywhere():
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in DASHBOARD["panels"] if panel["type"] != "row")
    used = set(re.findall(r"\$(\w+)", " ".join(expression for _, expression in PANELS))) - {"__rate_interval"}
    assert used <= set(variables)


def test_every_alert_says_what_it_means_and_what_to_do():
    for rule in ALERTS:
        assert {"summary", "description"} <= rule["annotations"].keys() and rule["labels"]["severity"] in (
            "page",
            "ticket",
        )
        assert set(re.findall(r"\$labels\.(\w+)", str(rule))) <= set.union(*TOLD.values()) | SCRAPED
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
