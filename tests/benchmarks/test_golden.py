"""Every golden fixture: what the official evaluators returned for seeded inputs, reproduced by our protocols.

The fixtures hold no upstream code and no annotation of anyone's benchmark; each names repository and commit."""

import json
from pathlib import Path

import numpy as np
import pytest
from pocketlens_bench.protocols import PROTOCOLS
from pocketlens_bench.protocols.domains import Freedom, Nico
from pocketlens_bench.protocols.queries import CircoQuery, CirrQuery, LandmarkQuery
from pocketlens_bench.protocols.ranking import Ties, from_lists, rank_block
from pocketlens_bench.protocols.task import Query, Task

GOLDEN = Path(__file__).parent / "golden"
CLOSE = 1e-5  # relative: some upstream values passed through float32
PRINTED = 0.006  # percent: upstream keeps two decimals
POLICIES = {"stable_index": Ties.BY_ID, "optimistic": Ties.OPTIMISTIC, "pessimistic": Ties.PESSIMISTIC}


def fixture(name):
    told = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return told, dict(arrays)


def expected(told, repo, at=0):
    return [each["metrics"] for each in told["expected"] if each["repo"].startswith(repo)][at]


def ids(count):
    """Gallery ids whose order as text is that of their places, so that `by-id` is upstream's `stable_index`."""
    return tuple(f"{place:05d}" for place in range(count))


def judged(protocol, tasks, orders):
    """Figures by name from ready rankings (queries, gallery) of each task."""
    blocks = [[from_lists(task, task.queries, order.tolist())] for task, order in zip(tasks, orders, strict=True)]
    return {figure.name: figure for figure in protocol.judge(tasks, blocks)}


def scored(protocol, task, scores, ties=Ties.PESSIMISTIC):
    return {
        figure.name: figure.value
        for figure in protocol.judge([task], [[rank_block(task, task.queries, scores, ties=ties)]])
    }


def values(figures):
    return {name: figure.value for name, figure in figures.items()}


def agree(came, wanted, **tolerance):
    assert wanted
    for name, value in wanted.items():
        assert came[name] == pytest.approx(value, **(tolerance or {"rel": CLOSE, "abs": 1e-9})), name


# --- FashionIQ


def fashion_task(arrays, prefix="", name="dress"):
    gallery = arrays[f"{prefix}gallery_names"].tolist()
    places = {asin: f"{place:05d}" for place, asin in enumerate(gallery)}
    queries = tuple(
        Query(id=str(i), reference=places[reference], relevant=frozenset([places[target]]))
        for i, (reference, target) in enumerate(
            zip(arrays[f"{prefix}reference_names"].tolist(), arrays[f"{prefix}target_names"].tolist(), strict=True)
        )
    )
    return Task(name=name, gallery=ids(len(gallery)), queries=queries)


def recalls(metrics):
    """Upstream's names as ours."""
    found = {
        f"R@{k}": metrics[key] for k in (1, 5, 10, 50) for key in (f"R@{k}", f"fiq_recall_at{k}") if key in metrics
    }
    assert found
    return found


@pytest.mark.parametrize("name", ["fashioniq_basic_q40_n90", "fashioniq_basic_q60_n150"])
def test_fashioniq_original_split(name):
    told, arrays = fixture(name)
    came = scored(PROTOCOLS["fashioniq"], fashion_task(arrays), arrays["scores"])
    for each in told["expected"]:
        agree(came, recalls(each["metrics"]))


@pytest.mark.parametrize("policy", POLICIES)
def test_fashioniq_ties_under_each_policy(policy):
    told, arrays = fixture("fashioniq_score_ties")
    came = scored(PROTOCOLS["fashioniq"], fashion_task(arrays), arrays["scores"], POLICIES[policy])
    for each in told["expected"]:
        agree(came, recalls(each["metrics"][policy]))


def test_fashioniq_raw_features_are_compared_by_cosine():
    told, arrays = fixture("fashioniq_raw_features")
    query, gallery = (
        arrays[key] / np.linalg.norm(arrays[key], axis=1, keepdims=True) for key in ("query_feats", "gallery_feats")
    )
    task = fashion_task({**arrays, "reference_names": arrays["target_names"]})
    scores = query @ gallery.T
    order = rank_block(task, task.queries, scores).order
    assert (order == arrays["expected_order"]).all()
    for each in told["expected"]:
        agree(scored(PROTOCOLS["fashioniq"], task, scores), recalls(each["metrics"]))


def test_fashioniq_starter_kit_ranks():
    told, arrays = fixture("fashioniq_starterkit_ranker")
    metrics = told["expected"][0]["metrics"]
    gallery, query = arrays["gallery_emb"].astype(np.int64), arrays["query_emb"].astype(np.int64)
    near = -np.square(query[:, None] - gallery[None]).sum(axis=2).astype(np.float64)  # its squared L2, exactly
    task = fashion_task({**arrays, "reference_names": arrays["target_names"]})
    block = rank_block(task, task.queries, near, ties=Ties.OPTIMISTIC)
    assert (block.hits.argmax(axis=1) == arrays["expected_rank_strictly_closer"]).all()
    came = scored(PROTOCOLS["fashioniq"], task, near, Ties.OPTIMISTIC)
    agree(came, {f"R@{k}": 100 * metrics[f"R@{k} from strict rank"] for k in (1, 5, 10, 50)})
    stable = rank_block(task, task.queries, near, ties=Ties.BY_ID).order
    same = [
        set(row) == set(wanted)
        for row, wanted in zip(stable[:, :50].tolist(), arrays["expected_top50"].tolist(), strict=True)
    ]
    assert np.mean(same) > 0.9  # on a tie at place 50 upstream's sort takes either


def test_fashioniq_averages_over_categories_not_queries():
    told, arrays = fixture("fashioniq_three_categories")
    names = ("dress", "shirt", "toptee")
    tasks = [fashion_task(arrays, f"{name}_", name) for name in names]
    came = judged(PROTOCOLS["fashioniq"], tasks, [arrays[f"{name}_order"] for name in names])
    metrics = told["expected"][0]["metrics"]
    for k in (10, 50):
        assert came[f"R@{k}"].value == pytest.approx(metrics[f"average_fiq_recall_at{k}"], rel=CLOSE)
        wanted = [metrics[f"{name}.fiq_recall_at{k}"] for name in names]
        assert came[f"R@{k}"].group_means().tolist() == pytest.approx(wanted, rel=CLOSE)


def test_fashioniq_val_protocol():
    told, arrays = fixture("fashioniq_val_union_protocol")
    places = {asin: f"{place:05d}" for place, asin in enumerate(arrays["gallery_names"].tolist())}
    queries = tuple(
        Query(id=str(i), reference=places[r], relevant=frozenset([places[t]]), exclude=frozenset([places[r]]))
        for i, (r, t) in enumerate(
            zip(arrays["query_reference"].tolist(), arrays["query_target"].tolist(), strict=True)
        )
    )
    task = Task(name="dress", gallery=ids(len(places)), queries=queries)
    apart = np.square(arrays["query_emb"][:, None].astype(np.float64) - arrays["gallery_emb"][None]).sum(axis=2)
    agree(scored(PROTOCOLS["fashioniq-val"], task, -apart), recalls(told["expected"][0]["metrics"]), abs=PRINTED)


# --- CIRR


@pytest.mark.parametrize("name", ["cirr_basic_q50_n160", "cirr_soft_targets_q80_n120"])
def test_cirr_hard_and_soft(name):
    told, arrays = fixture(name)
    soft = json.loads(str(arrays["target_soft_json"]))
    queries = tuple(
        CirrQuery(
            id=str(pair), reference=reference, relevant=frozenset([target]), exclude=frozenset([reference]),
            members=frozenset(members), soft=worth,
        )
        for pair, reference, target, members, worth in zip(
            arrays["pairids"].tolist(), arrays["reference_names"].tolist(), arrays["target_hard"].tolist(),
            arrays["group_members"].tolist(), soft, strict=True,
        )
    )  # fmt: skip
    task = Task(name="val", gallery=tuple(arrays["gallery_names"].tolist()), queries=queries)
    hard = expected(told, "miccunifi/SEARLE")
    came = scored(PROTOCOLS["cirr"], task, arrays["scores"])
    agree(came, {f"R@{k}": hard[f"cirr_recall_at{k}"] for k in (1, 5, 10, 50)})
    agree(came, {f"R_subset@{k}": hard[f"cirr_group_recall_at{k}"] for k in (1, 2, 3)})
    authors = expected(told, "Cuberick-Orion/CIRPLANT")
    came = scored(PROTOCOLS["cirr-soft"], task, arrays["scores"])
    agree(came, {f"R@{k}": 100 * authors[f"recall_top{k}_correct_composition"] for k in (1, 2, 5, 10, 50, 100)})
    agree(came, {f"R_subset@{k}": 100 * authors[f"recall_inset_top{k}_correct_composition"] for k in (1, 2, 3)})


# --- CIRCO


@pytest.mark.parametrize("name", ["circo_synth_q40_n120", "circo_synth_manygt_q25_n200"])
def test_circo(name):
    told, arrays = fixture(name)
    queries = tuple(
        CircoQuery(
            id=str(one["id"]), reference=str(one["reference_img_id"]), target=str(one["target_img_id"]),
            relevant=frozenset(map(str, one["gt_img_ids"])), aspects=tuple(one["semantic_aspects"]),
        )
        for one in told["annotations"]
    )  # fmt: skip
    task = Task(name="val", gallery=tuple(map(str, arrays["gallery_ids"].tolist())), queries=queries)
    came = values(judged(PROTOCOLS["circo"], [task], [arrays["order"]]))
    server, searle = expected(told, "miccunifi/CIRCO"), expected(told, "miccunifi/SEARLE")
    agree(came, {f"mAP@{k}": 100 * value for k, value in server["mAP"].items()})
    agree(came, {f"R@{k} of the target": 100 * value for k, value in server["recall_single_target"].items()})
    for aspect, value in server["semantic_mAP@10"].items():
        if value is None:
            assert np.isnan(came[f"mAP@10, {aspect}"])
        else:
            agree(came, {f"mAP@10, {aspect}": 100 * value})
    agree(came, {f"mAP@{k}": searle[f"circo_map_at{k}"] for k in (5, 10, 25, 50)})


# --- GeneCIS


@pytest.mark.parametrize("name", ["genecis_four_tasks", "genecis_four_tasks_small"])
def test_genecis(name):
    told, arrays = fixture(name)
    metrics = told["expected"][0]["metrics"]
    names = ("focus_attribute", "change_attribute", "focus_object", "change_object")
    tasks, orders = [], []
    for each in names:
        scores = arrays[f"{each}_scores"]
        queries = tuple(Query(id=str(i), reference=None, relevant=frozenset(["00000"])) for i in range(len(scores)))
        tasks.append(Task(name=each, gallery=ids(scores.shape[1]), queries=queries))
        orders.append(rank_block(tasks[-1], queries, scores).order)
    came = values(judged(PROTOCOLS["genecis"], tasks, orders))
    for each in names:
        agree(came, {f"R@{k}, {each}": 100 * metrics[each][f"R@{k}"] for k in (1, 2, 3)})
    agree(came, {"R@1, mean of 4 tasks": 100 * metrics["average_R@1"]})


# --- domain conversion


def test_imagenet_r_recall_and_hit_rate_are_two_protocols():
    told, arrays = fixture("domain_imagenetr_pic2word_vs_magiclens")
    labels, classes = arrays["target_label"], arrays["query_class"]
    domains = ("cartoon", "origami", "toy", "sculpture")
    gallery = ids(len(labels))
    queries, orders = [], []
    for number, domain in enumerate(domains):
        for i, kind in enumerate(classes.tolist()):
            right = frozenset(gallery[place] for place in np.flatnonzero(labels == kind + 1000 * number))
            queries.append(Query(id=f"{domain} {i}", reference=None, relevant=right, group=f"photo>{domain}"))
        orders.append(arrays[f"order_{domain}"])
    task = Task(name="imagenet-r", gallery=gallery, queries=tuple(queries))
    recall = judged(PROTOCOLS["imagenet-r"], [task], [np.concatenate(orders)])
    rate = judged(PROTOCOLS["imagenet-r-magiclens"], [task], [np.concatenate(orders)])
    for at, domain in enumerate(domains):
        wanted = expected(told, "google-research")[domain]
        assert {"R@10", "P@10", "R@200"} <= wanted.keys()
        for name, value in wanted.items():
            assert recall[name].group_means()[at] == pytest.approx(100 * value, rel=CLOSE, abs=1e-9), (domain, name)
        for name, value in expected(told, "google-deepmind")[domain].items():
            assert rate[name].group_means()[at] == pytest.approx(value, rel=CLOSE), (domain, name)


@pytest.mark.parametrize(
    ("name", "protocol"), [("domain_freedom_full", Freedom()), ("domain_freedom_nico_like", Nico())]
)
def test_freedom_over_every_pair_of_domains(name, protocol):
    told, arrays = fixture(name)
    metrics = told["expected"][0]["metrics"]
    gallery = ids(len(arrays["database_class"]))
    queries, orders, exact = [], [], []
    targets = sorted(key.removeprefix("order_") for key in arrays if key.startswith("order_"))
    for source in targets:
        for target in targets:
            if source == target:
                continue
            asked = np.flatnonzero(arrays["query_domain"] == source)
            for i in asked.tolist():
                right = (arrays["database_class"] == arrays["query_class"][i]) & (arrays["database_domain"] == target)
                queries.append(
                    Query(id=f"{i} {target}", reference=None, group=f"{source}>{target}",
                          relevant=frozenset(gallery[place] for place in np.flatnonzero(right)))
                )  # fmt: skip
            orders.append(arrays[f"order_{target}"][asked])
            exact += told["per_query_ap"][f"{source}-->{target}"]
    task = Task(name=name, gallery=gallery, queries=tuple(queries))
    came = judged(protocol, [task], [np.concatenate(orders)])
    assert came["mAP"].values / 100 == pytest.approx(exact, rel=1e-9)
    tables = metrics["tables (row=source, column=target, plus averages)"]
    assert set(tables) == set(came)
    for measure, figure in came.items():
        pairs = {pair.replace("-->", ">"): value[measure] for pair, value in metrics["pairs"].items()}
        assert dict(zip(figure.groups, figure.group_means(), strict=True)) == pytest.approx(pairs, abs=PRINTED)
        assert figure.value == pytest.approx(tables[measure]["average"]["average"], abs=PRINTED)


# --- PatternCom

MERGED = {
    "denseresidential": "residential", "sparseresidential": "residential", "closedroad": "road", "intersection": "road",
    "bridge": "roadpass", "overpass": "roadpass", "ferryterminal": "pier", "harbor": "pier", "parkingspace": "parking",
    "parkinglot": "parking",
}  # fmt: skip


def merged_class(file):
    kind = "".join(letter for letter in file if not letter.isdigit()).removesuffix(".jpg")
    return MERGED.get(kind, kind)


def test_patterncom():
    told, arrays = fixture("patterncom_two_attributes")
    files = [Path(path).name for path in arrays["database_paths"].tolist()]
    place = {file: i for i, file in enumerate(files)}
    picture, texts = arrays["database_feats"].astype(np.float64), arrays["text_feats"].astype(np.float64)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    text_of = dict(zip(arrays["text_values"].tolist(), texts, strict=True))
    for attribute, rows in told["csv"].items():
        value_of = {file: value for file, _, value in rows}
        queries, pictures, words = [], [], []
        for file, value in value_of.items():
            kind = merged_class(file)
            others = dict.fromkeys(v for f, v in value_of.items() if merged_class(f) == kind and v != value)
            for other in others:
                right = frozenset(f for f, v in value_of.items() if v == other and merged_class(f) == kind)
                queries.append(
                    Query(id=f"{file} {other}", reference=file, group=attribute,
                          relevant=frozenset(f"{place[f]:05d}" for f in right))
                )  # fmt: skip
                pictures.append(picture[place[file]] @ picture.T)
                words.append(text_of[other] @ picture.T)
        task = Task(name=attribute, gallery=ids(len(files)), queries=tuple(queries))
        ways = {"Image only": np.array(pictures), "Text only": np.array(words)}
        ways["Average Similarities"] = (ways["Image only"] + ways["Text only"]) / 2
        for way, scores in ways.items():
            came = scored(PROTOCOLS["patterncom"], task, scores)
            wanted = told["expected"][0]["metrics"][attribute][way]
            agree({**came, "AP": came["mAP"]}, wanted, abs=0.02)


# --- sketches

SKETCH_CODES = {
    "buptLinfy/ZSE-SBIR": {
        "mAP@all": "mAP@all[den=npos,voc]", "mAP@200": "mAP@200[den=min(k,npos),voc]",
        "Prec@100": "P@100[first min(k,npos)]", "Prec@200": "P@200[first min(k,npos)]",
    },
    "qliu24/SAKE": {
        "mAP@all": "mAP@all[den=npos,voc]", "mAP@200": "mAP@200[den=min(k,npos),voc]",
        "Prec@100": "P@100[den=min(k,gallery)]", "Prec@200": "P@200[den=min(k,gallery)]",
    },
    "AnjanDutta/sem-pcyc": {
        "mAP@all": "mAP@all[den=npos]", "mAP@200": "mAP@200[den=hits]",
        "Prec@100": "P@100[den=min(k,gallery)]", "Prec@200": "P@200[den=min(k,gallery)]",
    },
    "sounakdey/doodle2search": {
        "mAP@all": "mAP@all[den=npos]",
        "Prec@100 (precak: min(n_pos, k) denominator)": "P@100[den=min(k,npos)]",
        "Prec@200 (precak: min(n_pos, k) denominator)": "P@200[den=min(k,npos)]",
    },
    "aneeshan95/Sketch_LVM": {"mAP@all": "mAP@all[den=npos]"},
    "baohl00/UNION_for_IGROT": {
        "mAP@all": "mAP@all[den=npos,trapezoid]", "mAP@200": "mAP@200[den=hits,trapezoid]",
        "Prec@50": "P@50[den=k]", "Prec@100": "P@100[den=k]", "Prec@200": "P@200[den=k]",
    },
    "ShivaKrishnaM/ZS-SBIR": {"mAP@200": "mAP@200[den=200]", "Prec@200": "P@200[den=k]"},
}  # fmt: skip


def sketch_task(arrays, *, only_answered=False):
    gallery = ids(len(arrays["gallery_label"]))
    of_class = {
        label: frozenset(gallery[place] for place in np.flatnonzero(arrays["gallery_label"] == label))
        for label in set(arrays["query_label"].tolist())
    }
    kept = [i for i, label in enumerate(arrays["query_label"].tolist()) if of_class[label] or not only_answered]
    queries = tuple(Query(id=str(i), reference=None, relevant=of_class[arrays["query_label"][i]]) for i in kept)
    return Task(name="sketches", gallery=gallery, queries=queries), -arrays["distance"][kept]


@pytest.mark.parametrize("name", ["sbir_large_classes", "sbir_mixed_class_sizes", "sbir_small_gallery"])
def test_sketches_under_every_public_definition(name):
    told, arrays = fixture(name)
    task, scores = sketch_task(arrays)
    block = rank_block(task, task.queries, scores)
    figures = {figure.name: figure for figure in PROTOCOLS["tuberlin"].judge([task], [[block]])}
    assert {each["repo"] for each in told["expected"]} <= SKETCH_CODES.keys()
    for each in told["expected"]:
        factor, close = (1, {"abs": PRINTED}) if "percent" in each["unit"] else (100, {"rel": CLOSE})
        for metric, value in each["metrics"].items():
            assert figures[SKETCH_CODES[each["repo"]][metric]].value == pytest.approx(factor * value, **close), metric
    per_query = {
        "expected_ap_all_voc_interpolated": "mAP@all[den=npos,voc]",
        "expected_ap200_voc_interpolated": "mAP@200[den=min(k,npos),voc]",
        "expected_ap_all_sklearn": "mAP@all[den=npos]", "expected_ap200_sklearn_on_top200": "mAP@200[den=hits]",
    }  # fmt: skip
    for key, ours in per_query.items():
        assert figures[ours].values / 100 == pytest.approx(arrays[key], rel=CLOSE), key


def test_the_recommended_map_at_200_is_none_of_the_public_ones_where_classes_are_small():
    _, arrays = fixture("sbir_mixed_class_sizes")
    task, scores = sketch_task(arrays)
    came = scored(PROTOCOLS["tuberlin"], task, scores)
    others = [
        value for name, value in came.items() if name.startswith("mAP@200") and name != "mAP@200[den=min(k,npos)]"
    ]
    assert all(abs(came["mAP@200[den=min(k,npos)]"] - other) > 0.1 for other in others)


@pytest.mark.parametrize("policy", POLICIES)
def test_sketch_ties_under_each_policy(policy):
    told, arrays = fixture("sbir_ties_example")
    task, scores = sketch_task(arrays, only_answered=True)
    came = scored(PROTOCOLS["tuberlin"], task, scores, POLICIES[policy])
    (by_policy,) = (each["metrics"] for each in told["expected"] if policy in each["metrics"])
    for code, metrics in by_policy[policy].items():
        names = next(names for repo, names in SKETCH_CODES.items() if repo.endswith(code))
        agree(came, {names[metric]: 100 * value for metric, value in metrics.items()})


def test_sklearns_way_with_ties_lies_between_our_policies():
    told, arrays = fixture("sbir_ties_example")
    for repo, answered in (("AnjanDutta/sem-pcyc", False), ("sounakdey/doodle2search", True)):
        task, scores = sketch_task(arrays, only_answered=answered)
        low, high = (
            scored(PROTOCOLS["tuberlin"], task, scores, ties)["mAP@all[den=npos]"]
            for ties in (Ties.PESSIMISTIC, Ties.OPTIMISTIC)
        )
        assert low < 100 * expected(told, repo)["mAP@all"] < high


# --- landmarks


@pytest.mark.parametrize("name", ["revisitop_basic", "revisitop_small"])
def test_landmarks(name):
    told, arrays = fixture(name)
    gallery = ids(len(arrays["ranks"]))

    def some(places):
        return frozenset(gallery[place] for place in places)

    queries = tuple(
        LandmarkQuery(
            id=str(i), reference=None, easy=some(one["easy"]), hard=some(one["hard"]), junk=some(one["junk"]),
            relevant=some(one["easy"]) | some(one["hard"]),
        )
        for i, one in enumerate(told["gnd"])
    )  # fmt: skip
    task = Task(name=name, gallery=gallery, queries=queries)
    came = judged(PROTOCOLS["roxford"], [task], [arrays["ranks"].T])
    for setup, metrics in told["expected"][0]["metrics"].items():
        agree(values(came), {f"{metric}, {setup}": 100 * value for metric, value in metrics.items()})
        assert came[f"mAP, {setup}"].values / 100 == pytest.approx(
            arrays[f"expected_ap_{setup}"], rel=CLOSE, nan_ok=True
        )
        at = np.stack([came[f"mP@{k}, {setup}"].values / 100 for k in (1, 5, 10)], axis=1)
        assert at == pytest.approx(arrays[f"expected_p_at_1_5_10_{setup}"], rel=CLOSE, nan_ok=True)


# --- all of them


def test_every_fixture_is_used_here_or_where_submissions_are_written():
    text = Path(__file__).read_text(encoding="utf-8")
    unused = {file.stem for file in GOLDEN.glob("*.npz")} - {"circo_submission"}
    assert {name for name in unused if f'"{name}"' not in text} == set()
    assert not [file.name for file in GOLDEN.glob("*realval*")]
