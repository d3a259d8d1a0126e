"""The tokenizer a bundle carries gives the ids of the model's own, on text as wild as people's."""

import unicodedata

import numpy as np
import pytest
from pocketlens_cloud.wording import cleaned
from pocketlens_training.teachers.teacher import CannotTeach
from pocketlens_training.teachers.tokenizing import CLEANED, byte_pairs, clip_layout, probed_layout
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

COUNT = 10_000
PIECES = (
    br"a red mug don't it's I'LL we've WHITE Stra\u00dfe \u0130stanbul \u03a3\u039f\u03a6\u039f\u03a3 na\u00efve "
    br"cafe\u0301 \ufb01ne \u00bd x\u00b2 \u00b2 \u2167 \uff11\uff12 2026 $20 50% #tag @me http://a.b/c?d=e&f a_b "
    br"_ - -- ... \u2026 \u201cquoted\u201d \u2018single\u2019 \u00abguillemets\u00bb &amp; &lt;b&gt; &amp;lt; "
    br"&#233; &eacute; &nbsp; &notanentity; \u732b \u753b\u50cf\u691c\u7d22 \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 "
    br"\u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639\u0631\u0628\u064a\u0629 "
    br"\u0939\u093f\u0928\u094d\u0926\u0940 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \U0001f98a "
    br"\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \U0001f1eb\U0001f1f7 \u2764\ufe0f \u200b "
    br"\u200d \u00ad \ufeff \t \n \r\n \u00a0 \u3000 \u2028 \x00 \x07 sch\u00c3\u00b6n "
    br"\u00e2\u20ac\u0153mojibake\u00e2\u20ac\x9d \U0001d4bb\U0001d4b6\U0001d4c3 Z\u0334\u0308a\u0338l \U0001f9ff "
    br"\ud7ff \u00df \u0131 \u01c5 \ufdf7 supercalifragilisticexpialidocious ' '' 's ''s / | < > {sentence} ! !!! "
    br"? , . ; : ( ) [ ] + = ~ ` ^"
).decode("unicode_escape").split(" ")  # fmt: skip


def texts(count=COUNT, seed=0):
    """Pieces in random order, joined with and without spaces; some random characters, some very long. Code points not
    yet assigned are left out: whether one is a letter depends on the age of a library's Unicode tables."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        length = 400 if i % 1000 == 0 else int(rng.integers(0, 12))
        parts = [PIECES[j] for j in rng.integers(0, len(PIECES), length)]
        if i % 100 == 0:
            parts.append("a" * 200)
        if i % 5 == 0:
            parts += [chr(c) for c in rng.integers(1, 0x2FFFF, 4) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
        made.append((" ", "", "  ")[i % 3].join(parts))
    return made


@pytest.fixture(scope="module")
def clip():
    open_clip = pytest.importorskip("open_clip")
    own = open_clip.SimpleTokenizer()
    return own, byte_pairs(own.encoder, list(own.bpe_ranks), ["<start_of_text>", "<end_of_text>"])


def ids(tokenizer, text, clean):
    return tokenizer.encode(cleaned(text, clean), add_special_tokens=False).ids


def test_clips_byte_pairs_are_the_librarys(clip):
    own, made = clip
    made.encode_special_tokens = True
    different = [text for text in texts() if own.encode(text) != ids(made, text, CLEANED["lower"])]
    assert different == []


def test_a_typed_special_word_of_clip_stays_words(clip):
    """Here we differ from open_clip on purpose: there a typed "<end_of_text>" ends the text."""
    own, made = clip
    made.encode_special_tokens = True
    layout = clip_layout(own.sot_token_id, own.eot_token_id, clean="lower", fixed_length=False)
    assert own.eot_token_id in own.encode("<end_of_text>")
    assert set(layout.special).isdisjoint(ids(made, "a <end_of_text> <start_of_text>", layout.clean))


def test_sentence_pieces_are_the_librarys(tmp_path):
    """SigLIP's way: a Hugging Face tokenizer behind open_clip's cleaning."""
    open_clip_tokenizers = pytest.importorskip("open_clip.tokenizer")
    transformers = pytest.importorskip("transformers")
    pieces = Tokenizer(
        models.Unigram(
            [
                ("<unk>", -9.0),
                ("</s>", 0.0),
                *((c, -4.0) for c in "▁abcdefghijklmnopqrstuvwxyz0123456789"),
                ("▁red", -1.0),
                ("▁mug", -1.0),
            ],
            unk_id=0,
        )
    )
    pieces.normalizer = normalizers.NFKC()
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.add_special_tokens(["</s>"])
    pieces.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(tmp_path)
    own = open_clip_tokenizers.HFTokenizer(str(tmp_path), context_length=64, clean="canonicalize")
    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    layout = probed_layout(made, pad=1, clean=CLEANED["canonicalize"], fixed_length=True)
    assert (layout.begin, layout.end, layout.unknown) == ([], [1], 0)
    some = texts()
    theirs = own(some).tolist()
    for text, expected in zip(some, theirs, strict=True):
        came = ids(made, text, layout.clean)[: 64 - len(layout.end)] + layout.end
        assert came + [layout.pad] * (64 - len(came)) == expected, text


def test_word_pieces_are_the_librarys(tmp_path):
    """BERT's and BLIP's way."""
    transformers = pytest.importorskip("transformers")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz0123456789",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"),
        "red",
        "mug",
        "don",
        "'",
        ",",
        ".",
        "&",
        "猫",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    own = transformers.BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))
    own.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    layout = probed_layout(made, pad=own.pad_token_id, clean=[], fixed_length=False)
    assert (layout.begin, layout.end) == ([own.cls_token_id], [own.sep_token_id])
    assert layout.unknown == own.unk_token_id
    for text in texts():
        came = [*layout.begin, *ids(made, text, layout.clean), *layout.end]
        assert came == own(text).input_ids, text


def test_a_tokenizer_that_writes_into_the_text_is_refused():
    odd = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "<x>": 2}, unk_token="<unk>"))
    odd.pre_tokenizer = pre_tokenizers.Whitespace()
    odd.post_processor = processors.TemplateProcessing(single="<x> <x>", special_tokens=[("<x>", 2)])
    with pytest.raises(CannotTeach, match="writes 'a' as"):
        probed_layout(odd, pad=0, clean=[], fixed_length=False)
