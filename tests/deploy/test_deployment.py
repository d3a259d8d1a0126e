"""Dockerfile, compose and manifests against the real command, the names in the code, and each other; nothing is run."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from pocketlens_cloud import cli as cloud
from pocketlens_cloud.cli.root import app
from pocketlens_cloud.serving import health, metrics, monitoring
from pocketlens_cloud.serving.calls import GRACE_S
from typer.main import get_command

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE, MESH = DEPLOY / "kubernetes" / "base", DEPLOY / "kubernetes" / "mesh"
CONFIGS = sorted(DEPLOY.rglob("serve.toml"))
YAML = sorted([*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")])
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
KEPT = [yaml.safe_load(path.read_text()) for path in sorted(BASE.glob("*.yaml"))]
OBJECTS = {each["kind"]: each for each in KEPT}
POD = OBJECTS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
OURS = {"app.kubernetes.io/name": "pocketlens"}


def command(*names):
    """The command object of `pocketlens-cloud NAMES`."""
    assert cloud.app
    found = get_command(app)
    for name in names:
        found = found.commands[name]
    return found


def options(*names):
    """Its options, by name as in the TOML file."""
    return {
        max(each.opts, key=len).lstrip("-"): each for each in command(*names).params if each.opts[0].startswith("-")
    }


def config(path):
    return tomllib.loads(path.read_text())


def shown(path):
    return str(path.relative_to(DEPLOY))


# --- every file


@pytest.mark.parametrize("path", YAML, ids=shown)
def test_yaml_is_read_without_surprises(path):
    """No tabs, no key twice (the later would win in silence), a single document."""
    text = path.read_text()
    assert "\t" not in text and text.endswith("\n")

    def walk(node):
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            assert len(names) == len(set(names)), names
            for _, value in node.value:
                walk(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                walk(value)

    walk(yaml.compose(text))
    assert yaml.safe_load(text)


def images():
    yield from re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    yield from (service["image"] for service in COMPOSE["services"].values())
    yield CONTAINER["image"]
    chart = yaml.safe_load((DEPLOY / "kubernetes" / "qdrant.yaml").read_text())["image"]
    yield f"{chart['repository']}:{chart['tag']}"


def test_images_are_pinned_to_a_version():
    for image in images():
        assert re.search(r":v?\d+\.\d+\.\d+", image), image


def test_the_same_qdrant_everywhere_and_the_client_fits_it():
    qdrants = {re.search(r":v(\d+\.\d+\.\d+)", image)[1] for image in images() if "qdrant/qdrant" in image}
    assert len(qdrants) == 1
    wanted = (DEPLOY.parent / "pyproject.toml").read_text()
    low, high = re.search(r'"qdrant-client>=(\d+\.\d+),<(\d+)"', wanted).groups()
    assert (
        [int(part) for part in low.split(".")] <= [int(part) for part in qdrants.pop().split(".")][:2] < [int(high), 0]
    )


def test_our_image_has_one_name():
    """What compose builds is what the manifests run, at the version of the package."""
    version = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["version"]
    (renamed,) = OBJECTS["Kustomization"]["images"]
    assert f"{renamed['name']}:{renamed['newTag']}" == CONTAINER["image"] == COMPOSE["services"]["pocketlens"]["image"]
    assert CONTAINER["image"].endswith(f":{version}")


# --- options


@pytest.mark.parametrize("path", CONFIGS, ids=shown)
def test_every_option_of_a_file_is_one_of_serve_and_of_its_type(path):
    known = options("serve")
    for name, value in config(path).items():
        assert name in known, name
        assert known[name].type_cast_value(None, value if isinstance(value, bool) else str(value)) == (
            type(known[name].type_cast_value(None, str(value)))(value) if not isinstance(value, bool) else value
        )


@pytest.mark.parametrize("path", CONFIGS, ids=shown)
def test_a_file_says_a_whole_service(path):
    """One gallery; reachable; and whoever may reach it is told apart, over an encrypted line unless it is meant."""
    asked = config(path)
    assert ("gallery" in asked) != ("qdrant" in asked)
    assert ("qdrant" in asked) == ("collection" in asked) == ("qdrant-key-file" in asked)
    assert asked.get("qdrant", "https:").startswith("https:")  # else the key would travel in clear
    assert asked["host"] == "0.0.0.0" and "keys" in asked
    assert ("tls-cert" in asked and "tls-key" in asked) != asked.get("insecure-listen", False)
    assert asked["insecure-metrics"] is True and asked["metrics"].startswith("0.0.0.0:")
    assert asked["drain-s"] > 0


def commands_in(text):
    """Each `pocketlens-cloud ...` of a text, with what compose runs in a container of ours, as its words."""
    joined = text.replace("\\\n", " ")
    for said in re.findall(r"pocketlens-cloud ((?:keys|gallery|serve|index)[^\n`>#]*)", joined):
        yield shlex.split(said)
    for said in re.findall(r"docker compose run .*? pocketlens ([^\n`>#]*)", joined):
        yield shlex.split(said)


def test_commands_are_the_real_ones():
    ran = [["serve", *CONTAINER["args"][1:]], COMPOSE["services"]["pocketlens"]["command"]]
    (default,) = re.findall(r"^CMD (\[.*\])", DOCKERFILE, re.MULTILINE)
    ran += [yaml.safe_load(default), *commands_in((DEPLOY / "README.md").read_text())]
    assert len(ran) >= 6
    for words in ran:
        names = [words[0]]
        if words[0] in ("keys", "gallery"):
            names.append(words[1])
        known = {said for each in command(*names).params for said in each.opts}
        for word in words:
            assert not word.startswith("--") or word in known, " ".join(words)


def test_the_image_runs_the_command_that_the_package_brings():
    scripts = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["scripts"]
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])", DOCKERFILE, re.MULTILINE)
    assert yaml.safe_load(entry) == ["pocketlens-cloud"] and "pocketlens-cloud" in scripts


def test_the_image_gets_all_that_the_build_needs_and_no_secret():
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    assert copied == {package.split("/")[0] for package in packages}
    extras = re.search(r"'\.\[([\w,]+)\]'", DOCKERFILE)[1].split(",")
    assert set(extras) <= set(project["project"]["optional-dependencies"])
    sent = set(re.findall(r"^!(\S+)", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE))
    assert sent >= copied | {"pyproject.toml", "README.md", "LICENSE", "deploy/serve.toml"}
    assert "deploy" not in sent  # compose/secrets lies below it
    (bundle,) = re.findall(r"^ARG BUNDLE=(\S+)", DOCKERFILE, re.MULTILINE)
    assert (DEPLOY.parent / bundle / "cloud" / "manifest.json").is_file()


# --- ports, health, figures


@pytest.mark.parametrize("path", CONFIGS, ids=shown)
def test_ports_agree(path):
    asked = config(path)
    grpc, told = asked["port"], int(asked["metrics"].rpartition(":")[2])
    assert re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)[1].split() == [str(grpc), str(told)]
    assert {port["name"]: port["containerPort"] for port in CONTAINER["ports"]} == {"grpc": grpc, "metrics": told}
    assert POD["metadata"]["annotations"]["prometheus.io/port"] == str(told)
    (port,) = OBJECTS["Service"]["spec"]["ports"]
    assert port["port"] == grpc and port["targetPort"] == "grpc"
    doors = {rule["ports"][0]["port"] for rule in OBJECTS["NetworkPolicy"]["spec"]["ingress"]}
    assert doors == {grpc, told}
    assert COMPOSE["services"]["pocketlens"]["ports"][0].endswith(f":{grpc}")
    assert f"127.0.0.1:{told}/" in DOCKERFILE


def test_the_gallery_is_reached_through_the_policy():
    asked = config(BASE / "serve.toml")
    out = {port["port"] for rule in OBJECTS["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]}
    assert out == {int(asked["qdrant"].rpartition(":")[2]), asked["qdrant-grpc-port"], 53}


def probes(container):
    return {kind: container[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in container}


def test_probes_ask_what_there_is():
    routes = set(re.findall(r'"(/\w+)":', Path(monitoring.__file__).read_text()))
    for probe in probes(CONTAINER).values():
        assert probe["httpGet"]["path"] in routes and probe["httpGet"]["port"] == "metrics"
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/healthz"  # not the canary: see deploy/README.md
    assert re.search(r"9464(/\w+)", DOCKERFILE)[1] in routes
    patch = yaml.safe_load((MESH / "probes.yaml").read_text())
    (patched,) = patch["spec"]["template"]["spec"]["containers"]
    assert patched["name"] == CONTAINER["name"]
    for probe in probes(patched).values():
        assert probe["grpc"]["service"] in health.SERVICES
        assert probe["grpc"]["port"] == config(MESH / "serve.toml")["port"]
        assert probe["httpGet"] is None  # both would be refused
    assert "livenessProbe" not in patched


def test_grpc_probes_are_asked_only_where_the_pod_speaks_no_tls():
    """The kubelet's cannot."""
    assert "tls-cert" in config(BASE / "serve.toml") and all("grpc" not in each for each in probes(CONTAINER).values())
    assert "tls-cert" not in config(MESH / "serve.toml")


def test_figures_that_are_scaled_by_exist():
    metrics.watch_rows(lambda: dict.fromkeys(metrics.ROW_FATES, 0))
    told = {name for name, _, _ in metrics.read(metrics.exposition().decode())}
    (ours,) = [each["pods"]["metric"]["name"] for each in OBJECTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
               if each["type"] == "Pods"]  # fmt: skip
    (rule,) = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert ours == rule["name"]["as"] and ours in told
    assert set(re.findall(r"pocketlens_\w+", rule["seriesQuery"] + rule["metricsQuery"])) == {ours}


# --- the end, and who may what


def test_there_is_time_to_drain_before_the_kill():
    for path in (BASE, MESH):
        assert POD["spec"]["terminationGracePeriodSeconds"] > config(path / "serve.toml")["drain-s"] + GRACE_S
    grace = COMPOSE["services"]["pocketlens"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > config(DEPLOY / "compose" / "serve.toml")["drain-s"] + GRACE_S


def test_nobody_is_root():
    user = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[-1]
    assert DOCKERFILE.rindex("USER") < DOCKERFILE.index("ENTRYPOINT") and user[0] != "0"
    for service in COMPOSE["services"].values():
        assert not service["user"].startswith("0")
        assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
        assert not service.get("privileged") and "network_mode" not in service
    pod, inner = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    assert (
        pod["runAsNonRoot"] and str(pod["runAsUser"]) == user[0] and pod["seccompProfile"]["type"] == "RuntimeDefault"
    )
    assert inner == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert POD["spec"]["automountServiceAccountToken"] is False
    assert POD["spec"]["enableServiceLinks"] is False
    assert COMPOSE["services"]["pocketlens"]["read_only"] is True
    assert CONTAINER["resources"]["limits"]["memory"] and CONTAINER["resources"]["requests"]["cpu"]


def test_no_secret_stands_in_a_file_or_in_the_environment():
    for path in (*YAML, *CONFIGS, DEPLOY / "Dockerfile"):
        said = path.read_text()
        assert "BEGIN" not in said and not re.search(r"plk_\w", said)
        for name in ("API_KEY", "PASSWORD", "TOKEN"):
            assert name not in said, path
    ignored = (DEPLOY.parent / ".gitignore").read_text().splitlines()
    assert "/deploy/compose/secrets/" in ignored
    assert all(secret["file"].startswith("secrets/") for secret in COMPOSE["secrets"].values())
    assert "Secret" not in OBJECTS


# --- names that must meet


def test_what_a_configuration_names_is_mounted():
    inside = {f"/run/secrets/{each['target']}" for each in COMPOSE["services"]["pocketlens"]["secrets"]}
    named = [value for value in config(DEPLOY / "compose" / "serve.toml").values() if str(value).startswith("/run/")]
    assert set(named) | set(COMPOSE["services"]["pocketlens"]["environment"].values()) == inside
    mounts = {each["mountPath"]: each["name"] for each in CONTAINER["volumeMounts"]}
    volumes = {each["name"]: each for each in POD["spec"]["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert all("subPath" not in each for each in CONTAINER["volumeMounts"])  # such a mount never changes
    told = (DEPLOY / "README.md").read_text()
    for path in (BASE, MESH):
        secrets = {value for value in config(path / "serve.toml").values() if str(value).startswith("/secrets/")}
        for secret in secrets | {each["value"] for each in CONTAINER["env"]}:
            assert f"--from-file={Path(secret).name}" in told
    assert volumes[mounts["/secrets"]]["secret"]["secretName"] in told
    assert (
        volumes[mounts["/etc/pocketlens"]]["configMap"]["name"]
        == OBJECTS["Kustomization"]["configMapGenerator"][0]["name"]
    )
    assert CONTAINER["args"][-1] == COMPOSE["services"]["pocketlens"]["configs"][0]["target"]


def test_compose_names_what_it_declares():
    for service in COMPOSE["services"].values():
        assert {each["source"] for each in service["secrets"]} <= set(COMPOSE["secrets"])
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"])
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])


def test_three_nodes_of_qdrant_find_each_other():
    nodes = {name: each for name, each in COMPOSE["services"].items() if "qdrant/qdrant" in each["image"]}
    assert len(nodes) == 3
    told = yaml.safe_load((DEPLOY / "compose" / "qdrant.example.yaml").read_text())
    assert told["cluster"]["enabled"] and told["service"]["enable_tls"]
    scheme = "https" if told["cluster"]["p2p"]["enable_tls"] else "http"
    first = f"{scheme}://qdrant-1:{told['cluster']['p2p']['port']}"
    volumes = set()
    for name, node in nodes.items():
        said = dict(zip(node["command"][1::2], node["command"][2::2], strict=True))
        assert node["hostname"] == name and said["--uri"] == first.replace("qdrant-1", name)
        assert said.get("--bootstrap") == (None if name == "qdrant-1" else first)
        assert node["networks"]["gallery"]["aliases"] == ["qdrant"] and node["healthcheck"]
        volumes |= set(node["volumes"])
    assert len(volumes) == 3
    assert config(DEPLOY / "compose" / "serve.toml")["qdrant"].startswith("https://qdrant:")
    mounted = {f"/run/secrets/{each['target']}" for each in nodes["qdrant-1"]["secrets"]}
    assert set(told["tls"].values()) <= mounted
    assert COMPOSE["services"]["pocketlens"]["deploy"]["replicas"] == 2


def test_selectors_mean_our_pods_and_only_qdrant_is_asked():
    assert POD["metadata"]["labels"].items() >= OURS.items()
    assert OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"] == OURS
    assert OBJECTS["Service"]["spec"]["selector"] == OURS
    assert OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == OURS
    policy = OBJECTS["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == OURS and set(policy["policyTypes"]) == {"Ingress", "Egress"}
    asked = policy["egress"][0]["to"][0]["podSelector"]["matchLabels"]
    assert asked == {"app.kubernetes.io/name": "qdrant"}
    target = OBJECTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == OBJECTS["Deployment"]["metadata"]["name"]
    assert "replicas" not in OBJECTS["Deployment"]["spec"]  # the autoscaler's
    assert OBJECTS["HorizontalPodAutoscaler"]["spec"]["minReplicas"] >= 2
    assert not any(pair.get("includeSelectors") for pair in OBJECTS["Kustomization"]["labels"])  # would undo the above


def test_kustomize_names_every_file_there_is():
    files = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(OBJECTS["Kustomization"]["resources"]) == files
    mesh = yaml.safe_load((MESH / "kustomization.yaml").read_text())
    assert mesh["resources"] == ["../base"] and [each["path"] for each in mesh["patches"]] == ["probes.yaml"]
    assert mesh["configMapGenerator"][0]["name"] == OBJECTS["Kustomization"]["configMapGenerator"][0]["name"]


def test_the_tower_runs_on_the_processors_that_are_asked_for():
    """Left to itself it would count those of the whole machine."""
    for path in (BASE, MESH):
        assert str(config(path / "serve.toml")["runs"]) == CONTAINER["resources"]["requests"]["cpu"]
    limits = COMPOSE["services"]["pocketlens"]["deploy"]["resources"]["limits"]
    assert str(config(DEPLOY / "compose" / "serve.toml")["runs"]) == limits["cpus"]
