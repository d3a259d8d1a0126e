"""Teachers from open_clip: CLIP of OpenAI, LAION, DataComp (ViT, ConvNeXt, RN50), SigLIP, SigLIP 2, MobileCLIP, EVA.

Owns how open_clip's two kinds of model (CLIP, CustomTextCLIP) are taken apart, and what of them is refused: CoCa and
text towers that are Hugging Face models. Pooling, masks, projection, pixels and tokenizer all follow the model's own
configuration."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from pocketlens_wire.manifest import TextLayout
from pocketlens_wire.pictures import PictureSpec
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from pocketlens_training.recipe import PROMPTS
from pocketlens_training.teachers.packing import Packing
from pocketlens_training.teachers.teacher import CannotTeach, ImageModule, Teacher, TextModule, frozen
from pocketlens_training.teachers.tokenizing import CLEANED, byte_pairs, clip_layout, probed_layout, read_tokenizer

PIXELS = ("mean", "std", "interpolation", "resize_mode")
QUICK = "quick_gelu"
FITS = {"shortest": "crop", "squash": "squash"}  # open_clip's resize_mode -> PictureSpec.fit


def from_open_clip(name: str, model: str, *, pretrained: str | None = None, file: Path | None = None) -> Teacher:
    """The teacher `name`: architecture `model` with published weights `pretrained`, or with those of `file`, which
    `pretrained` may name.

    Raises CannotTeach, naming what is wrong."""
    import open_clip

    config = open_clip.get_model_config(model)
    if config is None:
        near = ", ".join(get_close_matches(model, open_clip.list_models(), 3, 0.5))
        raise CannotTeach(f"{name}: open_clip has no model {model!r}; near it: {near or 'nothing'}")
    if file is None and pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
        raise CannotTeach(
            f"{name}: which weights? open_clip:{model}@FILE for yours, open_clip:{model}/PRETRAINED for published "
            f"ones: {tags or 'none'}"
        )
    _refuse_other_texts(name, config)
    pixels_of_weights, quick = _way_of_weights(name, model, pretrained)
    whole: Any
    if file is None:
        whole = _published(name, model, str(pretrained), quick=quick)
    else:
        with _quietly():  # it warns that no published weights were loaded, which is what was asked for
            whole = open_clip.create_model(model, force_preprocess_cfg=pixels_of_weights, force_quick_gelu=quick)
        whole.load_state_dict(_weights(name, file, whole))
    frozen(whole)
    text: Any = whole if hasattr(whole, "transformer") else whole.text
    tokenizer, layout = _tokenizer(
        name, config["text_cfg"], open_clip.get_tokenizer, model, file, fixed_length=text.attn_mask is None
    )
    pixels: Any = open_clip.get_model_preprocess_cfg(whole)
    return Teacher(
        name=name,
        image=OpenClipImage(whole.visual, pixels["mean"], pixels["std"]),
        text=OpenClipText(text),
        scale=float(whole.logit_scale.exp().max()),
        dim=_dim(text),
        context=int(text.context_length),
        picture=_picture(name, pixels),
        layout=layout,
        prompts=PROMPTS,
        tokenizer=tokenizer,
        signature=json.dumps({"config": config, "pixels": pixels, "quick_gelu": quick}, sort_keys=True, default=str),
    )


def _way_of_weights(name: str, model: str, pretrained: str | None) -> tuple[dict[str, Any], bool]:
    """How published weights of this architecture want their pixels, and whether they were trained with QuickGELU:
    open_clip keeps both with the weights, not with the architecture, and a file does not say it. Of several ways, that
    of most published weights, and a warning. Raises CannotTeach for `pretrained` that open_clip does not list."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is not None and pretrained not in tags:
        raise CannotTeach(f"{name}: no published weights {pretrained!r} of {model}; there are: {', '.join(tags)}")
    ways: list[str] = []
    for tag in [pretrained] if pretrained else tags:
        config = open_clip.get_pretrained_cfg(model, tag) or {}
        found = {key: config[key] for key in PIXELS if config.get(key) is not None}
        ways.append(json.dumps({**found, QUICK: bool(config.get(QUICK))}, sort_keys=True, default=list))
    if not ways:
        return {}, False
    (most, _), *others = Counter(ways).most_common()
    if others:
        logging.getLogger("pocketlens").warning(
            "%s: published weights of %s differ in their pixels or their activation; taken is %s. Say whose weights "
            "the file holds: open_clip:%s/PRETRAINED@FILE", name, model, most, model,
        )  # fmt: skip
    way = json.loads(most)
    quick = bool(way.pop(QUICK))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in way.items()}, quick


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings of the root logger, which open_clip writes to."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class OpenClipText(TextModule):
    """open_clip's TextTransformer, or the text half of its CLIP: the same attributes under both."""

    mask: Tensor | None

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.words = tower.token_embedding
        self.positions = tower.positional_embedding
        self.transformer = tower.transformer
        self.norm = tower.ln_final
        self.project = tower.text_projection
        self.pooled = getattr(tower, "text_pool_type", None) or tower.pool_type
        self.register_buffer("mask", tower.attn_mask, persistent=False)
        self._sees_what_came_before = _is_causal(tower.attn_mask)

    def forward(
        self, token_ids: Tensor, sentence: Tensor, sentence_start: Tensor, sentence_length: Tensor, end: Tensor
    ) -> Tensor:
        if self.packs:
            return self._packed(self._embedded(token_ids, sentence, sentence_start, sentence_length), end)
        x = self._states(token_ids, sentence, sentence_start, sentence_length)
        if self.pooled == "last":
            x = x[:, -1]
        elif self.pooled == "first":
            x = x[:, 0]
        else:  # at the end token, which open_clip finds by its id
            x = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        return self._projected(x)

    def projected(
        self,
        token_ids: Tensor,
        sentence: Tensor,
        sentence_start: Tensor,
        sentence_length: Tensor,
        end: Tensor,  # noqa: ARG002
    ) -> Tensor:
        return self._projected(self._states(token_ids, sentence, sentence_start, sentence_length))

    def pooled_at(self, end: Tensor) -> Tensor:
        if self.pooled == "last":
            return torch.full_like(end, len(self.positions) - 1)
        return torch.zeros_like(end) if self.pooled == "first" else end

    def _states(self, token_ids: Tensor, sentence: Tensor, sentence_start: Tensor, sentence_length: Tensor) -> Tensor:
        x = self._embedded(token_ids, sentence, sentence_start, sentence_length)
        return self.norm(self.transformer(x, attn_mask=self._mask_of(x)))

    def _embedded(self, token_ids: Tensor, sentence: Tensor, sentence_start: Tensor, sentence_length: Tensor) -> Tensor:
        length = token_ids.shape[1]
        return self.with_sentence(token_ids, sentence, sentence_start, sentence_length) + self.positions[:length]

    def _mask_of(self, x: Tensor) -> Tensor | None:
        return None if self.mask is None else self.mask[: x.shape[1], : x.shape[1]]

    @property
    def packs(self) -> bool:
        return (
            self._sees_what_came_before
            and self.pooled not in ("last", "first")
            and all(_is_plain(block) for block in self.transformer.resblocks)
        )

    def _packed(self, x: Tensor, end: Tensor) -> Tensor:
        """As the whole tower, but no layer reads padding, and the last block is computed at the end token alone."""
        assert self.mask is not None
        packing, sees = Packing(end, x.shape[1]), self.mask[: x.shape[1], : x.shape[1]] == 0
        x = packing.pack(x)
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            x = x + block.ls_1(packing.attended(block.attn, block.ln_1(x), sees))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        y = packing.ends(x) + last.ls_1(packing.attended_at_the_end(last.attn, last.ln_1(x)))
        y = y + last.ls_2(last.mlp(last.ln_2(y)))
        return self._projected(self.norm(y))

    def _projected(self, x: Tensor) -> Tensor:
        if self.project is None:
            return x
        return self.project(x) if isinstance(self.project, nn.Linear) else x @ self.project


def _is_causal(mask: Tensor | None) -> bool:
    """Whether each token sees itself and those before it, and so nothing of the padding."""
    return mask is not None and torch.equal(mask == 0, torch.ones_like(mask).tril() > 0)


def _is_plain(block: nn.Module) -> bool:
    """Whether a block is open_clip's usual one, of which `_packed` knows the parts."""
    return (
        type(block).__name__ == "ResidualAttentionBlock"
        and isinstance(block.attn, nn.MultiheadAttention)
        and block.attn.in_proj_weight is not None
    )


class OpenClipImage(ImageModule):
    """Any of open_clip's image towers; its pixels' mean and deviation inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, visual: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("mean", 255 * torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        found = self.visual.forward_intermediates(x, indices=1, normalize_intermediates=True, output_fmt="NCHW")
        return found["image_features"], found["image_intermediates"][-1].flatten(2).transpose(1, 2)


def _refuse_other_texts(name: str, config: dict[str, Any]) -> None:
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        raise CannotTeach(
            f"{name}: its text tower is the Hugging Face model {text['hf_model_name']}, which takes no sentence tokens "
            "here; choose a CLIP, SigLIP, MobileCLIP or EVA model"
        )
    if text.get("embed_cls") or "multimodal_cfg" in config:
        raise CannotTeach(f"{name}: CoCa reads its text feature from an extra token; choose a CLIP or SigLIP model")


def _published(name: str, model: str, pretrained: str, *, quick: bool) -> Any:
    import open_clip

    try:
        return open_clip.create_model(model, pretrained=pretrained, force_quick_gelu=quick)
    except (OSError, RuntimeError) as error:
        raise CannotTeach(
            f"{name}: the weights cannot be fetched ({str(error).splitlines()[0]}). Without a network, fetch them "
            f"elsewhere and name the file: open_clip:{model}/{pretrained}@FILE.safetensors"
        ) from error


def _weights(name: str, file: Path, whole: nn.Module) -> dict[str, Tensor]:
    """The tensors of `file`, which must be those of `whole` by name and shape."""
    if not file.is_file():
        raise CannotTeach(f"{name}: no file {file}")
    try:
        if file.suffix == ".safetensors":
            tensors = load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # each library has its own kinds
        raise CannotTeach(
            f"{name}: {file} cannot be read as weights alone ({str(error).splitlines()[0][:200]}). Checkpoints that "
            "hold more than tensors are not unpickled: save the state dict as safetensors"
        ) from error
    held: Any = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else None
    named = isinstance(held, dict) and all(isinstance(key, str) for key in held)
    if not named or not all(isinstance(value, Tensor) for value in held.values()):
        raise CannotTeach(f"{name}: {file} holds no state dict: names with tensors were expected")
    tensors = {key.removeprefix("module."): value for key, value in held.items()}
    wanted = whole.state_dict()
    missing, strange = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    differ = [key for key in wanted if key in tensors and wanted[key].shape != tensors[key].shape]
    if missing or strange or differ:
        said = [
            f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
            for what, keys in (("lacks", missing), ("holds unknown", strange), ("has another shape for", differ))
            if keys
        ]
        raise CannotTeach(f"{name}: {file} is of another architecture: it {'; it '.join(said)}")
    return tensors


def _tokenizer(
    name: str, text: dict[str, Any], get: Any, model: str, file: Path | None, *, fixed_length: bool
) -> tuple[Tokenizer, TextLayout]:
    """The model's tokenizer: open_clip's own byte pairs, or a tokenizer.json (beside `file`, else of its hub)."""
    clean = text.get("tokenizer_kwargs", {}).get("clean")
    if text.get("hf_tokenizer_name") is None:
        own = get(model)
        special = [own.decoder[own.sot_token_id], own.decoder[own.eot_token_id]]
        made = byte_pairs(own.encoder, list(own.bpe_ranks), special)
        return made, clip_layout(own.sot_token_id, own.eot_token_id, clean=clean or "lower", fixed_length=fixed_length)
    beside = file.parent / "tokenizer.json" if file else None
    if beside and beside.is_file():
        made, pad = read_tokenizer(beside), _pad(name, beside)
    else:
        made, pad = _fetched(name, get, model)
    return made, probed_layout(made, pad=pad, clean=CLEANED[clean or "whitespace"], fixed_length=fixed_length)


def _fetched(name: str, get: Any, model: str) -> tuple[Tokenizer, int]:
    try:
        own = get(model).tokenizer
    except (OSError, RuntimeError, ValueError) as error:
        raise CannotTeach(
            f"{name}: its tokenizer cannot be fetched ({str(error).splitlines()[0][:200]}). Without a network, put its "
            "tokenizer.json beside the weights"
        ) from error
    return own.backend_tokenizer, own.pad_token_id


def _pad(name: str, file: Path) -> int:
    """The padding id that a tokenizer.json declares."""
    tokenizer = read_tokenizer(file)
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    for word in ("<pad>", "[PAD]", "</s>"):
        if (found := tokenizer.token_to_id(word)) is not None:
            return found
    raise CannotTeach(f"{name}: {file} names no padding")


def _dim(text: Any) -> int:
    project = text.text_projection
    if project is None:
        return int(text.ln_final.normalized_shape[0])
    return int(project.out_features if isinstance(project, nn.Linear) else project.shape[1])


def _picture(name: str, pixels: dict[str, Any]) -> PictureSpec:
    """How open_clip's own transform makes a picture square."""
    side = pixels["size"] if isinstance(pixels["size"], int) else pixels["size"][0]
    if not isinstance(pixels["size"], int) and len(set(pixels["size"])) != 1:
        raise CannotTeach(f"{name}: it takes pictures of {pixels['size']}, which is no square")
    if pixels["resize_mode"] not in FITS:
        raise CannotTeach(f"{name}: it resizes pictures by {pixels['resize_mode']!r}; here are {', '.join(FITS)}")
    return PictureSpec(side=side, fit=FITS[pixels["resize_mode"]], resample=pixels["interpolation"])
