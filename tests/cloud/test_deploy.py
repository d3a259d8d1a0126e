"""Dashboard, alerts and runbook speak of figures that exist, and of each other."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pocketlens_cloud.serving import metrics
from pocketlens_wire.v1 import retrieval_pb2 as pb

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/pocketlens.json").read_text())
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
PAGE = (ROOT / "docs/operations.md").read_text()
QUERIES = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]


@pytest.fixture(scope="module")
def told() -> dict[str, list[dict[str, str]]]:
    """The labels of every figure that a server tells, by its name."""
    metrics.say_what_runs(pb.DescribeReply(bundle="toy"))
    metrics.watch_rows(lambda: dict.fromkeys(metrics.ROW_FATES, 0))
    figures: dict[str, list[dict[str, str]]] = {}
    for name, labels, _ in metrics.read(metrics.exposition().decode()):
        figures.setdefault(name, []).append(labels)
    return figures


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_figures_and_labels_that_are_told(told, query):
    asked = re.findall(r"\b((?:pocketlens|process|up)\w*)\b(?:\{([^}]*)\})?", query)
    names = [(name, labels) for name, labels in asked if name != "up" and name != "pocketlens"]
    assert names or "up{" in query
    for name, labels in names:
        assert name in told, name
        for label, said in re.findall(r'(\w+)(?:=~|!=|=)"([^"]*)"', labels):
            if label in ("instance", "job"):  # of the scrape
                continue
            assert label in told[name][0], f"{name} has no label {label}"
            if label == "kind":
                assert set(said.split("|")) <= set(metrics.KINDS)
            else:
                assert {each[label] for each in told[name]} >= set(said.split("|"))
    for labels in re.findall(r"by \(([^)]*)\)", query):
        for label in re.split(r", ?", labels):
            assert label in ("instance", "le") or any(label in each for name, _ in names for each in told[name])


def test_every_alert_has_its_section_and_every_section_its_alert():
    alerts = [rule["alert"] for rule in RULES]
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == alerts
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        section = RUNBOOK.partition(f"## {rule['alert']}\n")[2].partition("\n## ")[0]
        assert all(part in section for part in ("**Means.**", "**See.**", "**Do.**"))
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_page_lists_every_figure(told):
    table = PAGE.partition("<!-- figures -->")[2].partition("<!-- /figures -->")[0]
    listed = set(re.findall(r"^\| `(pocketlens_\w+)`", table, re.MULTILINE))
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in told if name.startswith("pocketlens_")}
    assert listed == ours


def test_the_panels_have_ids_of_their_own_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
