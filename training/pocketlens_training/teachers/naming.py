"""From what a person writes, `open_clip:ViT-B-32/laion2b_s34b_b79k`, to a teacher."""

from __future__ import annotations

from pathlib import Path

from pocketlens_training.teachers.teacher import CannotTeach, Teacher

FORMS = (
    ("open_clip:MODEL/PRETRAINED", "published weights of open_clip; `open_clip.list_pretrained()` names them"),
    ("open_clip:MODEL@FILE", "that architecture with weights of your own, best .safetensors"),
    ("hf:REPOSITORY or hf:FOLDER", "BLIP for image-text retrieval"),
)
NEEDED = {"open_clip": "open_clip", "hf": "transformers"}


def load_teacher(name: str) -> Teacher:
    """The teacher called `name`, one of FORMS. Raises CannotTeach."""
    family, _, rest = name.partition(":")
    if family not in NEEDED or not rest:
        forms = "; ".join(f"{form} ({says})" for form, says in FORMS)
        raise CannotTeach(f"{name}: no teacher has this name. The forms are {forms}")
    _need(name, NEEDED[family])
    if family == "hf":
        from pocketlens_training.teachers.from_blip import from_blip

        return from_blip(name, rest)
    from pocketlens_training.teachers.from_open_clip import from_open_clip

    if "@" in rest:
        model, _, file = rest.partition("@")
        return from_open_clip(name, model, file=Path(file))
    model, _, pretrained = rest.partition("/")
    if not pretrained:
        raise CannotTeach(
            f"{name}: which weights? open_clip:{model}/PRETRAINED for published ones, open_clip:{model}@FILE for yours"
        )
    return from_open_clip(name, model, pretrained=pretrained)


def _need(name: str, package: str) -> None:
    try:
        __import__(package)
    except ImportError as missing:
        raise CannotTeach(f"{name}: {package} is not installed: pip install 'pocketlens[teachers]'") from missing
