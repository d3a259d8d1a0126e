"""Teachers from Hugging Face's BLIP for image-text retrieval (Li et al. 2022): a bidirectional BERT-like text tower
that is read at its first position, and a matching head.

Sentence tokens go in where word embeddings do, before positions and their LayerNorm. The library adds positions into
the very tensor it is given, so it is given a fresh one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pocketlens_wire.pictures import PictureSpec
from torch import Tensor

from pocketlens_training.recipe import PROMPTS
from pocketlens_training.teachers.teacher import (
    CannotTeach,
    ImageModule,
    MatchingModule,
    Teacher,
    TextModule,
    frozen,
)
from pocketlens_training.teachers.tokenizing import probed_layout

KIND = "BlipForImageTextRetrieval"
CONTEXT = 35  # ids: the retrieval checkpoints were tuned on texts of this length
SCALE = 1 / 0.07  # the library does not keep BLIP's temperature; this is the value its training begins with
RESAMPLED = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as preprocessor_config.json has them


def from_blip(name: str, source: str) -> Teacher:
    """The teacher `name`: a folder of the Hugging Face form, or a repository of its hub.

    Raises CannotTeach, naming what is wrong."""
    from transformers import AutoTokenizer, BlipForImageTextRetrieval, BlipImageProcessor

    _refuse_other_kinds(name, source)
    try:
        loaded: Any = BlipForImageTextRetrieval.from_pretrained(
            source, use_safetensors=_has_safetensors(source), output_loading_info=True
        )
        words: Any = AutoTokenizer.from_pretrained(source)
        pixels: Any = BlipImageProcessor.from_pretrained(source)
    except (OSError, ValueError, RuntimeError) as error:
        raise CannotTeach(f"{name}: {str(error).splitlines()[0][:300]}") from error
    model, loading = loaded
    _refuse_other_tensors(name, loading)
    frozen(model)
    layout = probed_layout(words.backend_tokenizer, pad=words.pad_token_id, clean=[], fixed_length=False)
    image, text = BlipImage(model, pixels.image_mean, pixels.image_std), BlipText(model)
    return Teacher(
        name=name,
        image=image,
        text=text,
        scale=SCALE,
        dim=model.text_proj.out_features,
        context=min(CONTEXT, model.config.text_config.max_position_embeddings),
        picture=PictureSpec(side=pixels.size["height"], fit="squash", resample=_resampling(name, pixels)),
        layout=layout,
        prompts=PROMPTS,
        tokenizer=words.backend_tokenizer,
        signature=_signature(model.config, pixels),
        matching=BlipMatching(model, image, text, _matching_mark(model.config.text_config, words)),
    )


class BlipText(TextModule):
    """BLIP's text encoder without pictures, read at its first position and projected."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.text_encoder
        self.project = model.text_proj
        self.words = model.text_encoder.embeddings.word_embeddings

    def states(
        self, token_ids: Tensor, sentence: Tensor, sentence_start: Tensor, sentence_length: Tensor, end: Tensor,
        **pictured: Tensor,
    ) -> Tensor:  # fmt: skip
        """States (batch, length, width) of all positions; with encoder_hidden_states, of the matching encoder."""
        words = self.with_sentence(token_ids, sentence, sentence_start, sentence_length)
        seen = (torch.arange(token_ids.shape[1], device=end.device)[None] <= end[:, None]).long()
        return self.encoder(inputs_embeds=words.clone(), attention_mask=seen, **pictured).last_hidden_state

    def forward(
        self, token_ids: Tensor, sentence: Tensor, sentence_start: Tensor, sentence_length: Tensor, end: Tensor
    ) -> Tensor:
        return self.project(self.states(token_ids, sentence, sentence_start, sentence_length, end)[:, 0])

    def projected(
        self, token_ids: Tensor, sentence: Tensor, sentence_start: Tensor, sentence_length: Tensor, end: Tensor
    ) -> Tensor:
        return self.project(self.states(token_ids, sentence, sentence_start, sentence_length, end))

    def pooled_at(self, end: Tensor) -> Tensor:
        return torch.zeros_like(end)


class BlipImage(ImageModule):
    """BLIP's vision transformer."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.vision = model.vision_model
        self.project = model.vision_proj
        self.register_buffer("mean", 255 * torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std)[:, None, None], persistent=False)

    def states(self, pixels: Tensor) -> Tensor:
        """States (batch, 1 + places, width), the first of the whole picture."""
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return self.vision(pixel_values=x).last_hidden_state

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        states = self.states(pixels)
        return self.project(states[:, 0]), states[:, 1:]


class BlipMatching(MatchingModule):
    """BLIP's text encoder with cross-attention to a picture, and its matching head, read at the first position, where
    it was trained to find `mark` (None: what rows begin with)."""

    def __init__(self, model: Any, image: BlipImage, text: BlipText, mark: int | None) -> None:
        super().__init__()
        self.image, self.text, self.head, self.mark = image, text, model.itm_head, mark

    def look(self, pixels: Tensor) -> Tensor:
        return self.image.states(pixels)

    def forward(self, rows: Any, sentence: Tensor, seen: Tensor) -> Tensor:
        token_ids = rows.token_ids
        if self.mark is not None:
            token_ids = token_ids.clone()
            token_ids[:, 0] = self.mark
        states = self.text.states(
            token_ids, sentence, rows.sentence_start, rows.sentence_length, rows.end,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        )  # fmt: skip
        return self.head(states[:, 0])


def _refuse_other_tensors(name: str, loading: Any) -> None:
    """The library fills what a file lacks with random numbers."""
    wrong = {
        "lacks": sorted(loading["missing_keys"]),
        "has another shape for": sorted(str(key[0]) for key in loading["mismatched_keys"]),
    }
    said = [f"{what} {', '.join(keys[:3])} ({len(keys)} in all)" for what, keys in wrong.items() if keys]
    if said:
        raise CannotTeach(f"{name}: its file {' and '.join(said)}; it is of another architecture, or incomplete")


def _resampling(name: str, pixels: Any) -> str:
    found = int(pixels.resample)
    if found not in RESAMPLED:
        raise CannotTeach(
            f"{name}: its pictures are resampled with Pillow's filter {found}; here are "
            f"{', '.join(f'{number} ({said})' for number, said in RESAMPLED.items())}"
        )
    return RESAMPLED[found]


def _matching_mark(config: Any, words: Any) -> int | None:
    """The id of [ENC], which the authors' code puts in place of [CLS] before the matching head (salesforce/BLIP,
    blip_retrieval.py). The library's tokenizer does not know it; its embedding is the last, after that of [DEC]."""
    known = words.backend_tokenizer.token_to_id("[ENC]")
    if known is not None:
        return int(known)
    last = config.vocab_size - 1
    return last if last == config.bos_token_id + 1 and last >= len(words) else None


def _signature(config: Any, pixels: Any) -> str:
    """The towers' configuration and the pixels', without names, paths and versions of the library."""
    towers = {"vision": config.vision_config.to_dict(), "text": config.text_config.to_dict()}
    kept = {
        key: {
            name: value
            for name, value in tower.items()
            if isinstance(value, bool | int | float) or name == "hidden_act"
        }
        for key, tower in towers.items()
    }
    return json.dumps({**kept, "mean": list(pixels.image_mean), "std": list(pixels.image_std)}, sort_keys=True)


def _refuse_other_kinds(name: str, source: str) -> None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise CannotTeach(
            f"{name}: no model there ({str(error).splitlines()[0][:200]}). Without a network, fetch the repository "
            "elsewhere and name its folder: hf:FOLDER"
        ) from error
    kinds = config.architectures or []
    if KIND not in kinds:
        raise CannotTeach(
            f"{name}: is {', '.join(kinds) or config.model_type}; of Hugging Face's models {KIND} can teach. "
            "CLIP and SigLIP come through open_clip: open_clip:MODEL/PRETRAINED"
        )


def _has_safetensors(source: str) -> bool | None:
    """Whether a folder holds safetensors; None, for the library to find out, of a hub."""
    folder = Path(source)
    if not folder.is_dir():
        return None
    index = folder / "model.safetensors.index.json"
    return (folder / "model.safetensors").is_file() or (index.is_file() and bool(json.loads(index.read_text())))
