"""From what a person writes, `open_clip:ViT-B-32/laion2b_s34b_b79k`, to a teacher."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from pocketlens_training.teachers.teacher import CannotTeach, Teacher

FORMS = (
    ("open_clip:MODEL/PRETRAINED", "published weights of open_clip; `open_clip.list_pretrained()` names them"),
    ("open_clip:MODEL@FILE", "that architecture with weights of your own, best .safetensors"),
    ("open_clip:MODEL/PRETRAINED@FILE", "published weights from a file; how they want pixels follows from their name"),
    ("hf:REPOSITORY or hf:FOLDER", "BLIP for image-text retrieval"),
    ("run:FOLDER", "a teacher of your own, made by `pocketlens-train teacher`"),
    ("sample", "the sample world's, which comes along"),
)
FAMILIES = (  # what teaches, an example, what its text tower sees and where it is read
    (
        "CLIP of OpenAI, LAION, DataComp: ViT, ConvNeXt, ResNet",
        "open_clip:ViT-B-32/laion2b_s34b_b79k",
        "causal, at the end",
    ),
    ("SigLIP, SigLIP 2", "open_clip:ViT-B-16-SigLIP2/webli", "sees all and its padding, at the last place"),
    ("MobileCLIP, MobileCLIP 2", "open_clip:MobileCLIP2-S0/dfndr2b", "sees all and its padding, at the end"),
    ("EVA-CLIP", "open_clip:EVA02-B-16/merged2b_s8b_b131k", "causal, at the end"),
    ("BLIP for image-text retrieval", "hf:Salesforce/blip-itm-base-coco", "sees all but padding, at the first place"),
)
REFUSED = (
    ("CoCa", "its text feature comes from an extra token"),
    ("CLIP with a Hugging Face text tower (roberta, xlm-roberta, mt5, nllb)", "it takes no sentence tokens here"),
    ("other Hugging Face models", "CLIP and SigLIP come through open_clip"),
)
NEEDED = {"open_clip": "open_clip", "hf": "transformers", "run": "safetensors"}


def load_teacher(name: str) -> Teacher:
    """The teacher called `name`, one of FORMS. Raises CannotTeach."""
    if name == "sample":
        import pocketlens_samples

        return _own(name, Path(pocketlens_samples.__file__).parent / "teacher")
    family, _, rest = name.partition(":")
    if family not in NEEDED or not rest:
        near = get_close_matches(name, ["sample", *(f"{kind}:" for kind in NEEDED)], 1)
        forms = "; ".join(f"{form} ({says})" for form, says in FORMS)
        said = f"Did you mean {near[0]}?" if near and near[0] != name else f"The forms are {forms}"
        raise CannotTeach(f"{name}: no teacher has this name. {said}")
    _need(name, NEEDED[family])
    if family == "run":
        return _own(name, Path(rest))
    if family == "hf":
        from pocketlens_training.teachers.from_blip import from_blip

        return from_blip(name, rest)
    from pocketlens_training.teachers.from_open_clip import from_open_clip

    if "@" in rest:
        named, _, file = rest.partition("@")
        model, _, pretrained = named.partition("/")
        return from_open_clip(name, model, pretrained=pretrained or None, file=Path(file))
    model, _, pretrained = rest.partition("/")
    return from_open_clip(name, model, pretrained=pretrained or None)


def _own(name: str, folder: Path) -> Teacher:
    from pocketlens_training.teachers.own import from_own

    return from_own(name, folder)


def _need(name: str, package: str) -> None:
    try:
        __import__(package)
    except ImportError as missing:
        raise CannotTeach(f"{name}: {package} is not installed: pip install 'pocketlens[teachers]'") from missing
