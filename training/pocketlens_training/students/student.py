"""The student as a whole: pixels in, sentence tokens out."""

from __future__ import annotations

import torch
from pocketlens_wire.pictures import PictureSpec
from torch import Tensor, nn

from pocketlens_training.nearest_words import Vocabulary
from pocketlens_training.students.backbones import TINY, Backbone, make_backbone
from pocketlens_training.students.token_learner import Reading, TokenLearner
from pocketlens_training.teachers.teacher import Teacher

MOST_TOKENS = 16


class Student(nn.Module):
    """`pixels` uint8 (batch, side, side, 3) RGB -> `sentence` float32 (batch, k, word_width)."""

    def __init__(self, encoder: Backbone, learner: TokenLearner) -> None:
        super().__init__()
        self.encoder, self.learner = encoder, learner

    def read(self, pixels: Tensor) -> Reading:
        """The sentence and where each token looked."""
        return self.learner.read(self.encoder(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.learner(self.encoder(pixels))

    @property
    def tokens(self) -> int:
        return len(self.learner.queries)


def make_student(
    name: str, teacher: Teacher, *, tokens: int, side: int = 0, pretrained: bool = True, anchors: int = 0
) -> Student:
    """A fresh student of `teacher`. name: see make_backbone. tokens: 1 to MOST_TOKENS. anchors: words that
    vocabulary-anchored tokens mix; 0 for free tokens. Raises CannotStudy, ValueError."""
    if not 1 <= tokens <= MOST_TOKENS:
        raise ValueError(f"a picture becomes 1 to {MOST_TOKENS} tokens, {tokens} were asked for")
    encoder = make_backbone(name, side=side, pretrained=pretrained)
    return Student(encoder, make_learner(name, encoder.channels, teacher, tokens=tokens, anchors=anchors))


def make_learner(name: str, channels: int, teacher: Teacher, *, tokens: int, anchors: int = 0) -> TokenLearner:
    """A fresh token learner of the size that the backbone `name` gets, upon a map of `channels`."""
    words = words_of(teacher, anchors) if anchors else None
    learner = learner_of_size(name, channels, teacher.word_width, tokens=tokens, anchors=words)
    learner.match_norm(median_norm(teacher))
    return learner


def learner_of_size(
    name: str, channels: int, word_width: int, *, tokens: int, anchors: Tensor | None = None
) -> TokenLearner:
    """The same, for no teacher in particular: of words of `word_width` numbers."""
    own = name in TINY
    return TokenLearner(channels, tokens, word_width, width=128 if own else 256, heads=4 if own else 8, anchors=anchors)


def median_norm(teacher: Teacher) -> float:
    """Of the text tower's word embeddings."""
    return float(teacher.text.words.weight.float().norm(dim=1).median())


def words_of(teacher: Teacher, limit: int) -> Tensor:
    """Embeddings (n, width) of the most frequent whole words, at most `limit`."""
    ids = Vocabulary(teacher).whole_words()[:limit]
    return teacher.text.words.weight.detach()[torch.tensor(ids)].float().clone()


def student_picture(student: Student, teacher: Teacher) -> PictureSpec:
    """How the device makes a picture square: the student's side, the teacher's manner, so that both see the same."""
    return PictureSpec(side=student.encoder.side, fit=teacher.picture.fit, resample=teacher.picture.resample)
