"""BLIP: what we compute with the library's model is what the library computes, in torch and as ONNX."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pocketlens_export.graphs import RawAndUnitImage, UnitText, write_pixels_graph, write_text_tower
from pocketlens_training.reading import Rows
from pocketlens_training.teachers.naming import load_teacher
from pocketlens_training.teachers.teacher import CannotTeach
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")
CLOSE = 1e-4
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "red", "mug", "hat", "on", "grass", ","]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A repository's files, small, with weights of its own."""
    home = tmp_path_factory.mktemp("blip")
    config = transformers.BlipConfig(
        text_config={
            "vocab_size": len(WORDS) + 2, "hidden_size": 32, "encoder_hidden_size": 48, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40, "pad_token_id": 0,
            "eos_token_id": 3, "sep_token_id": 3,
            "initializer_range": 0.2, "bos_token_id": len(WORDS),  # [DEC], then [ENC], as in BLIP
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16, "initializer_range": 0.2,  # its default, 1e-10, makes pictures alike
        },
        image_text_hidden_size=24, projection_dim=24,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BlipForImageTextRetrieval(config).save_pretrained(home)
    (home / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(vocab_file=str(home / "vocab.txt")).save_pretrained(home)
    transformers.BlipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(home)
    return home


@pytest.fixture(scope="module")
def blip(folder):
    model = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    return load_teacher(f"hf:{folder}"), model, transformers.AutoTokenizer.from_pretrained(folder)


def fed(teacher, texts, k=0):
    """Rows as the cloud builds them, the sentence first."""
    layout = teacher.layout
    built = [
        [*layout.begin, *[layout.slot] * k, *teacher.tokenizer.encode(text, add_special_tokens=False).ids, *layout.end]
        for text in texts
    ]
    ids = torch.full((len(built), max(map(len, built))), layout.pad)
    for row, some in zip(ids, built, strict=True):
        row[: len(some)] = torch.tensor(some)
    start = torch.full((len(built),), len(layout.begin))
    return ids, start, torch.full((len(built),), k), torch.tensor([len(some) - 1 for some in built])


TEXTS = ["a photo of a red mug", "a hat, on grass", ""]


@torch.no_grad()
def test_text_and_pictures_are_the_librarys(blip):
    teacher, model, tokenizer = blip
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    given = transformers.BlipImageProcessor(do_resize=False)([row.numpy() for row in pixels], return_tensors="pt")
    words = tokenizer(TEXTS, return_tensors="pt", padding=True)
    theirs = model(
        input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=given.pixel_values,
        use_itm_head=False,
    ).itm_score  # fmt: skip
    ids, start, length, end = fed(teacher, TEXTS)
    assert ids.tolist() == words.input_ids.tolist()
    text = F.normalize(teacher.text(ids, torch.zeros(3, 1, 32), start, length, end), dim=1)
    image = F.normalize(teacher.image(pixels)[0], dim=1)
    assert (image @ text.T - theirs).abs().max() < CLOSE


@torch.no_grad()
def test_a_sentence_takes_the_places_of_words(blip):
    teacher, model, _ = blip
    words = torch.tensor([8, 9])
    ids, start, length, end = fed(teacher, TEXTS[:2], k=2)
    sentence = teacher.text.words(words)[None].expand(2, -1, -1).contiguous()
    before = sentence.clone()
    ours = F.normalize(teacher.text(ids, sentence, start, length, end), dim=1)
    typed = ids.clone()
    typed[:, 1:3] = words
    states = model.text_encoder(input_ids=typed, attention_mask=(typed != 0).long()).last_hidden_state[:, 0]
    assert (ours - F.normalize(model.text_proj(states), dim=1)).abs().max() < CLOSE
    assert torch.equal(sentence, before)  # the library adds positions in place


def test_the_exported_graphs_are_the_librarys(blip, tmp_path):
    import onnxruntime

    teacher, _, _ = blip
    write_text_tower(teacher.text, tmp_path / "text.onnx", width=teacher.word_width, context=teacher.context)
    names = ["image_raw", "image", "places"]
    write_pixels_graph(RawAndUnitImage(teacher.image), tmp_path / "image.onnx", side=64, outputs=names)
    session = onnxruntime.InferenceSession(tmp_path / "text.onnx")
    for count, k in ((1, 0), (3, 2)):
        ids, start, length, end = fed(teacher, TEXTS[:count], k)
        feeds = {
            "token_ids": ids, "sentence": torch.randn(count, max(1, k), 32), "sentence_start": start,
            "sentence_length": length, "end": end,
        }  # fmt: skip
        (came,) = session.run(["text"], {name: tensor.numpy() for name, tensor in feeds.items()})
        with torch.no_grad():
            assert np.abs(came - UnitText(teacher.text)(*feeds.values()).numpy()).max() < CLOSE
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    _, unit, _ = onnxruntime.InferenceSession(tmp_path / "image.onnx").run(None, {"pixels": pixels.numpy()})
    with torch.no_grad():
        assert np.abs(unit - F.normalize(teacher.image(pixels)[0], dim=1).numpy()).max() < CLOSE


@torch.no_grad()
def test_matching_is_the_librarys_with_the_mark_its_head_was_trained_on(blip):
    teacher, model, tokenizer = blip
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    given = transformers.BlipImageProcessor(do_resize=False)([row.numpy() for row in pixels], return_tensors="pt")
    typed = tokenizer(["a red mug", "a hat on"], return_tensors="pt")
    typed.input_ids[:, 0] = len(WORDS) + 1  # [ENC]
    theirs = model(
        input_ids=typed.input_ids, attention_mask=typed.attention_mask, pixel_values=given.pixel_values,
    ).itm_score  # fmt: skip
    ids, start, length, end = fed(teacher, ["mug", "on"], k=2)
    sentence = teacher.text.words(typed.input_ids[:, 1:3])
    made = Rows(ids, start, length, end)
    ours = teacher.matching(made, sentence, teacher.matching.look(pixels))
    assert ids[0, 0] == tokenizer.cls_token_id  # the rows are as they were
    assert (ours - theirs).abs().max() < CLOSE
    assert (ours[0] - ours[1]).abs().max() > 10 * CLOSE


@pytest.mark.parametrize(("cut", "said"), [("itm_head", "lacks itm_head"), ("text_proj", "lacks text_proj")])
def test_a_file_that_lacks_tensors_is_refused(folder, tmp_path, cut, said):
    """The library would fill them with random numbers."""
    shutil.copytree(folder, tmp_path / "cut")
    held = load_file(folder / "model.safetensors")
    left = {name: value for name, value in held.items() if not name.startswith(cut)}
    save_file(left, tmp_path / "cut" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CannotTeach, match=said):
        load_teacher(f"hf:{tmp_path / 'cut'}")


def test_another_resampling_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    transformers.BlipImageProcessor(size={"height": 64, "width": 64}, resample=1).save_pretrained(tmp_path / "other")
    with pytest.raises(CannotTeach, match=r"resampled with Pillow's filter 1; here are 2 \(bilinear\), 3 \(bicubic\)"):
        load_teacher(f"hf:{tmp_path / 'other'}")


def test_settings_follow_the_models_own_configuration(blip):
    teacher, _, tokenizer = blip
    assert teacher.layout.begin == [tokenizer.cls_token_id] and teacher.layout.end == [tokenizer.sep_token_id]
    assert teacher.layout.unknown == tokenizer.unk_token_id and teacher.layout.pad == tokenizer.pad_token_id
    assert (teacher.picture.side, teacher.picture.fit, teacher.picture.resample) == (64, "squash", "bicubic")
    assert (teacher.dim, teacher.word_width, teacher.context) == (24, 32, 35)


def test_other_models_of_the_hub_are_refused(tmp_path):
    transformers.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    with pytest.raises(CannotTeach, match="is BertModel; of Hugging Face's models BlipForImageTextRetrieval can teach"):
        load_teacher(f"hf:{tmp_path}")
