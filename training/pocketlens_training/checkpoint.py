"""What a training left behind, read back: the weights of one run folder as modules in evaluation mode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from pocketlens_training.heads import QueryHead, TargetHead
from pocketlens_training.recipe import Recipe
from pocketlens_training.student import Student, TokenLearner
from pocketlens_training.text import load_tokenizer
from pocketlens_training.towers import Teacher


@dataclass(frozen=True)
class Trained:
    """All modules of a finished run."""

    folder: Path
    recipe: Recipe
    teacher: Teacher
    student: Student
    query_head: QueryHead
    target_head: TargetHead
    control_head: QueryHead
    symmetric: TokenLearner

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / "tokenizer.json"


def load_run(folder: Path) -> Trained:
    """Modules of the run in `folder`. Raises FileNotFoundError naming the lesson that is missing."""
    for lesson in ("edits", "student", "heads-union", "heads-control", "symmetric"):
        if not (folder / f"{lesson}.safetensors").is_file():
            raise FileNotFoundError(
                f"{folder}: lesson `{lesson}` is not trained yet; finish it with `pocketlens-train sample -o {folder}`"
            )
    recipe = Recipe.read(folder / "recipe.json")
    vocabulary = load_tokenizer(folder / "tokenizer.json").get_vocab_size()
    union = load_file(folder / "heads-union.safetensors")
    heads = nn.ModuleDict({"query": QueryHead(recipe.dim), "target": TargetHead(union["target.empty"].clone())})
    heads.load_state_dict(union)
    control = nn.ModuleDict({"query": QueryHead(recipe.dim)})
    modules = {
        "edits": Teacher(recipe, vocabulary),
        "student": Student(recipe.student_widths, recipe.tokens, recipe.word_width),
        "heads-control": control,
        "symmetric": TokenLearner(recipe.teacher_widths[-1], recipe.tokens, recipe.word_width),
    }
    for lesson, module in modules.items():
        module.load_state_dict(load_file(folder / f"{lesson}.safetensors"))
    for module in (*modules.values(), heads):
        module.eval().requires_grad_(False)
    return Trained(
        folder, recipe, modules["edits"], modules["student"], heads["query"], heads["target"], control["query"],
        modules["symmetric"],
    )  # fmt: skip
