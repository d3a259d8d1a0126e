"""Every family of teacher: what we compute with its model is what its own library computes, in torch and as ONNX."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pocketlens_export.graphs import RawAndUnitImage, UnitText, write_pixels_graph, write_text_tower
from pocketlens_training.teachers.naming import FAMILIES, load_teacher
from pocketlens_training.teachers.teacher import CannotTeach
from pocketlens_wire.manifest import PACKS
from pocketlens_wire.pictures import fit
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

open_clip = pytest.importorskip("open_clip")
CLOSE = 1e-4  # of unit features
TEXTS = ["a red mug", "two hats on grass, but dotted", "", "x " * 30]
CLIP_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
PIECES_TEXT = {
    **CLIP_TEXT, "context_length": 64, "vocab_size": 64, "hf_tokenizer_name": "local-only",
    "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
}  # fmt: skip


def timm(name, side, pool, proj):
    return {
        "timm_model_name": name, "timm_model_pretrained": False, "timm_pool": pool, "timm_proj": proj,
        "image_size": side,
    }  # fmt: skip


def small(vision, *, text=None, **more):
    return {"embed_dim": 48, "vision_cfg": vision, "text_cfg": text or CLIP_TEXT} | more


PLAIN = {"image_size": 64, "width": 64, "patch_size": 16}
CONFIGS = {
    "clip-vit": small({**PLAIN, "layers": 2}, quick_gelu=True),
    "clip-resnet": small({**PLAIN, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}),
    "clip-convnext": small(timm("test_convnext", 160, "", "linear")),
    "mobileclip": small(
        timm("test_resnet", 160, "avg", None), custom_text=True, text={**CLIP_TEXT, "no_causal_mask": True}
    ),
    "eva": small(timm("eva02_tiny_patch14_224", 224, "token", None), custom_text=True),
    "siglip": small(
        timm("test_vit", 160, "map", "none"), custom_text=True, text=PIECES_TEXT, embed_dim=64, init_logit_bias=-10
    ),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of locally initialised weights for each small architecture, and the library's own model of it."""
    folder = tmp_path_factory.mktemp("weights")
    made = {}
    for name, config in CONFIGS.items():
        (folder / f"small-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    for seed, name in enumerate(CONFIGS):
        torch.manual_seed(seed)
        home = folder / name
        home.mkdir()
        model = open_clip.create_model(f"small-{name}").eval()
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, home / "w.safetensors")
        made[name] = home / "w.safetensors", model
    sentence_pieces().save(str(folder / "siglip" / "tokenizer.json"))
    return made


def sentence_pieces() -> Tokenizer:
    """A tokenizer of SigLIP's form: sentence pieces, "</s>" at the end and as padding."""
    letters = [("▁", -2.0), *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789")]
    words = [("▁red", -1.0), ("▁mug", -1.0), ("▁hat", -1.0), ("▁on", -1.0)]
    tokenizer = Tokenizer(models.Unigram([("<unk>", -9.0), ("</s>", 0.0), *letters, *words], unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_padding(pad_id=1, pad_token="</s>", length=64)
    return tokenizer


def teacher_of(weights, name):
    return load_teacher(f"open_clip:small-{name}@{weights[name][0]}")


def rows(teacher, texts, k=0, before="a photo of"):
    """Token rows as the cloud builds them: (ids, start, length, end); with k, the sentence after `before`."""
    layout, built, starts = teacher.layout, [], []
    for text in texts:
        head = teacher.tokenizer.encode(before if k else "", add_special_tokens=False).ids
        ids = [*layout.begin, *head, *[layout.slot] * k]
        ids += teacher.tokenizer.encode(text, add_special_tokens=False).ids
        ids = [*ids[: teacher.context - len(layout.end)], *layout.end]
        starts.append(len(layout.begin) + len(head))
        built.append(ids)
    length = teacher.context if layout.fixed_length else max(map(len, built))
    padded = torch.full((len(built), length), layout.pad)
    for row, ids in zip(padded, built, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    ends = torch.tensor([len(ids) - 1 for ids in built])
    return padded, torch.tensor(starts), torch.full((len(built),), k), ends


def padded_to_context(teacher, ids):
    return F.pad(ids, (0, teacher.context - ids.shape[1]), value=teacher.layout.pad)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def family(request, weights):
    return teacher_of(weights, request.param), weights[request.param][1]


@torch.no_grad()
def test_text_without_a_sentence_is_the_librarys(family):
    teacher, model = family
    ids, start, length, end = rows(teacher, TEXTS)
    ours = F.normalize(teacher.text(ids, torch.zeros(4, 1, teacher.word_width), start, length, end), dim=1)
    theirs = model.encode_text(padded_to_context(teacher, ids), normalize=True)
    assert ours.shape == (4, teacher.dim)
    assert (ours - theirs).abs().max() < CLOSE


@torch.no_grad()
def test_a_sentence_takes_the_places_of_words(family):
    """A sentence of real words' embeddings reads as those words do, wherever it stands."""
    teacher, model = family
    words = torch.tensor([5, 9, 17])
    ids, start, length, end = rows(teacher, TEXTS[:2], k=3)
    ours = teacher.text(ids, teacher.text.words(words)[None].expand(2, -1, -1), start, length, end)
    typed = ids.clone()
    for row, at in zip(typed, start, strict=True):
        row[at : at + 3] = words
    theirs = model.encode_text(padded_to_context(teacher, typed), normalize=True)
    assert (F.normalize(ours, dim=1) - theirs).abs().max() < CLOSE


@torch.no_grad()
def test_pictures_are_the_librarys(family):
    teacher, model = family
    pixels = torch.randint(0, 256, (3, teacher.picture.side, teacher.picture.side, 3), dtype=torch.uint8)
    raw, places = teacher.image(pixels)
    config = open_clip.get_model_preprocess_cfg(model)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    theirs = model.encode_image((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    assert (F.normalize(raw, dim=1) - F.normalize(theirs, dim=1)).abs().max() < CLOSE
    assert places.ndim == 3 and places.shape[1] > 1


def test_gradients_reach_the_sentence_and_nothing_else(family):
    teacher, _ = family
    ids, start, length, end = rows(teacher, TEXTS[:2], k=2)
    sentence = torch.randn(2, 2, teacher.word_width, requires_grad=True)
    teacher.text(ids, sentence, start, length, end).sum().backward()
    assert sentence.grad is not None and sentence.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.text.parameters())


@torch.no_grad()
def test_a_causal_tower_reads_no_padding(weights):
    teacher = teacher_of(weights, "clip-vit")
    ids, start, length, end = rows(teacher, TEXTS)
    assert len(set(end.tolist())) > 1
    read = []
    blocks = teacher.text.transformer.resblocks
    hooks = [block.mlp.register_forward_hook(lambda _, given, __: read.append(len(given[0]))) for block in blocks]
    teacher.text(ids, torch.zeros(4, 1, teacher.word_width), start, length, end)
    for hook in hooks:
        hook.remove()
    assert read == [int((end + 1).sum()), 4]  # all tokens, then the end tokens
    assert not teacher_of(weights, "mobileclip").text.packs  # its tokens see the padding


def test_the_exported_graphs_are_the_librarys(family, tmp_path):
    import onnxruntime

    teacher, model = family
    write_text_tower(teacher.text, tmp_path / "text.onnx", width=teacher.word_width, context=teacher.context)
    write_pixels_graph(
        RawAndUnitImage(teacher.image), tmp_path / "image.onnx", side=teacher.picture.side,
        outputs=["image_raw", "image", "places"],
    )  # fmt: skip
    text = onnxruntime.InferenceSession(tmp_path / "text.onnx")
    assert (text.get_modelmeta().custom_metadata_map.get(PACKS) == "yes") == teacher.text.packs
    for count, k in ((1, 0), (3, 4), (2, 1)):
        ids, start, length, end = rows(teacher, TEXTS[:count], k)
        sentence = torch.randn(count, max(1, k), teacher.word_width)
        feeds = {"token_ids": ids, "sentence": sentence, "sentence_start": start, "sentence_length": length, "end": end}
        (came,) = text.run(["text"], {name: tensor.numpy() for name, tensor in feeds.items()})
        with torch.no_grad():
            expected = UnitText(teacher.text)(*feeds.values()).numpy()
            if k == 0:
                assert (
                    np.abs(came - model.encode_text(padded_to_context(teacher, ids), normalize=True).numpy()).max()
                    < CLOSE
                )
        assert np.abs(came - expected).max() < CLOSE
    pixels = torch.randint(0, 256, (3, teacher.picture.side, teacher.picture.side, 3), dtype=torch.uint8)
    raw, unit, places = onnxruntime.InferenceSession(tmp_path / "image.onnx").run(None, {"pixels": pixels.numpy()})
    with torch.no_grad():
        expected_raw, expected_places = teacher.image(pixels)
    assert np.abs(unit - F.normalize(expected_raw, dim=1).numpy()).max() < CLOSE
    assert np.abs(raw - expected_raw.numpy()).max() / np.linalg.norm(raw, axis=1).mean() < CLOSE
    assert places.shape == tuple(expected_places.shape)


def test_settings_follow_the_models_own_configuration(weights):
    teachers = {name: teacher_of(weights, name) for name in CONFIGS}
    fixed = {name for name, teacher in teachers.items() if teacher.layout.fixed_length}
    assert fixed == {"mobileclip", "siglip"}  # they attend to padding
    assert teachers["siglip"].picture.fit == "crop" and teachers["siglip"].context == 64
    assert teachers["siglip"].layout.begin == [] and teachers["siglip"].layout.end == [1]
    assert teachers["clip-vit"].layout.begin == [49406] and teachers["clip-vit"].layout.end == [49407]
    assert {teacher.dim for teacher in teachers.values()} == {48, 64}


def test_our_pixels_are_almost_those_of_the_librarys_transform(weights):
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose

    teacher, model = teacher_of(weights, "clip-vit"), weights["clip-vit"][1]
    transform = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False)
    rng = np.random.default_rng(0)
    for size in ((120, 90), (64, 64), (333, 77)):
        smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        theirs = Compose(transform.transforms[:2])(smooth)
        difference = np.abs(np.asarray(theirs, np.int16) - fit(smooth, teacher.picture))
        assert np.median(difference) <= 2 and difference.max() <= 12  # they round the crop to whole pixels


# --- refusals


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ViT-B-32", "The forms are open_clip:MODEL/PRETRAINED"),
        ("open_clip:", "no teacher has this name"),
        ("open_clip:ViT-B-32", "which weights"),
        ("open_clip:ViT-B-99/x", "open_clip has no model 'ViT-B-99'; near it: ViT-B-"),
        ("open_clip:ViT-B32", "open_clip has no model 'ViT-B32'; near it: ViT-B-32"),
        ("smaple", "no teacher has this name. Did you mean sample?"),
        ("open_clip:ViT-B-32/nothing", "no published weights 'nothing' of ViT-B-32; there are: "),
        ("open_clip:ViT-B-32@/no/such.safetensors", "no file /no/such.safetensors"),
        ("open_clip:coca_ViT-B-32@x", "CoCa reads its text feature"),
        ("open_clip:roberta-ViT-B-32@x", "Hugging Face model roberta-base"),
        ("hf:/no/such/folder", "no model there"),
    ],
)
def test_what_cannot_teach_is_refused_by_name(name, said):
    with pytest.raises(CannotTeach, match=said.replace("(", r"\(")) as refused:
        load_teacher(name)
    assert name.split("@")[0].split("/")[0] in str(refused.value)


def test_weights_of_another_architecture_are_refused(weights, tmp_path):
    with pytest.raises(CannotTeach, match=r"is of another architecture: it lacks .* and .* more; it holds unknown"):
        load_teacher(f"open_clip:small-clip-vit@{weights['clip-resnet'][0]}")
    torch.save({"state_dict": {"x": object()}}, tmp_path / "pickled.pt")
    with pytest.raises(CannotTeach, match="not unpickled: save the state dict as safetensors"):
        load_teacher(f"open_clip:small-clip-vit@{tmp_path / 'pickled.pt'}")
    for strange in (torch.zeros(3), {"state_dict": {"visual.proj": 3}}):
        torch.save(strange, tmp_path / "strange.pt")
        with pytest.raises(CannotTeach, match="holds no state dict: names with tensors were expected"):
            load_teacher(f"open_clip:small-clip-vit@{tmp_path / 'strange.pt'}")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(CannotTeach, match="cannot be read as weights alone"):
        load_teacher(f"open_clip:small-clip-vit@{tmp_path / 'torn.safetensors'}")


def test_a_state_dict_of_plain_tensors_is_taken(weights, tmp_path):
    state = {f"module.{key}": value for key, value in weights["clip-vit"][1].state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "epoch_3.pt")
    assert load_teacher(f"open_clip:small-clip-vit@{tmp_path / 'epoch_3.pt'}").dim == 48


def test_a_published_activation_comes_with_the_name_of_its_weights(weights, monkeypatch, caplog):
    """open_clip only warns where weights were trained with QuickGELU and the architecture says GELU."""
    published = {"openai": {"quick_gelu": True}, "laion": {}, "datacomp": {}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small-clip-resnet", published)
    file, plain = weights["clip-resnet"]
    quick = open_clip.create_model("small-clip-resnet", force_quick_gelu=True).eval()
    quick.load_state_dict(plain.state_dict())
    ids = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    with torch.no_grad():
        wanted = {"openai": quick.encode_text(ids, normalize=True), "laion": plain.encode_text(ids, normalize=True)}
    assert (wanted["openai"] - wanted["laion"]).abs().max() > CLOSE
    made = {tag: load_teacher(f"open_clip:small-clip-resnet/{tag}@{file}") for tag in wanted}
    for tag, teacher in made.items():
        ids, start, length, end = rows(teacher, TEXTS)
        with torch.no_grad():
            text = F.normalize(teacher.text(ids, torch.zeros(len(TEXTS), 1, 64), start, length, end), dim=1)
        assert (text - wanted[tag]).abs().max() < CLOSE, tag
    assert made["openai"].id != made["laion"].id and made["openai"].text_id != made["laion"].text_id
    assert "differ in" not in caplog.text
    assert teacher_of(weights, "clip-resnet").id == made["laion"].id  # as most published weights
    assert "differ in their pixels or their activation" in caplog.text
    with pytest.raises(CannotTeach, match="no published weights 'opanai' of small-clip-resnet; there are: openai"):
        load_teacher(f"open_clip:small-clip-resnet/opanai@{file}")


# --- the command


def test_every_example_is_published():
    for _, example, _ in FAMILIES:
        family, _, rest = example.partition(":")
        if family == "open_clip":
            model, _, tag = rest.partition("/")
            assert tag in open_clip.list_pretrained_tags_by_model(model), example


def test_the_command_lists_what_teaches_and_describes_one(weights, capsys):
    from pocketlens_training.cli import app

    app(["teachers"], standalone_mode=False)
    assert "SigLIP" in capsys.readouterr().out
    app(["teachers", f"open_clip:small-siglip@{weights['siglip'][0]}"], standalone_mode=False)
    card = json.loads(capsys.readouterr().out)
    assert (card["dim"], card["word_width"], card["context"]) == (64, 64, 64)
    assert card["text"]["fixed_length"] is True
    with pytest.raises(SystemExit):
        app(["teachers", "nothing"])
    assert "no teacher has this name" in capsys.readouterr().err
