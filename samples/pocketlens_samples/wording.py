"""Owns the words: how each value is named, and the sentences people use to ask for a change.

language.py puts them together. No two values of one attribute share a synonym, so every phrase says
exactly one value. The held-out templates are for evaluation only.
"""

from __future__ import annotations

PLURAL: dict[str, str] = {
    "mug": "mugs", "lamp": "lamps", "chair": "chairs", "bottle": "bottles", "shoe": "shoes",
    "bag": "bags", "hat": "hats", "clock": "clocks", "vase": "vases", "book": "books",
    "shirt": "shirts", "umbrella": "umbrellas",
}  # fmt: skip

# The first word of each is the value itself; colours need no synonyms to be natural.
COLOUR: dict[str, tuple[str, ...]] = {
    "red": ("red",), "orange": ("orange",), "yellow": ("yellow",), "green": ("green",),
    "blue": ("blue",), "purple": ("purple", "violet"), "pink": ("pink",), "brown": ("brown",),
    "black": ("black",), "white": ("white",),
}  # fmt: skip

PATTERN_ADJECTIVE: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "unpatterned"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "chequered"),
}
PATTERN_CLAUSE: dict[str, tuple[str, ...]] = {
    "plain": ("with no pattern", "without a pattern"),
    "striped": ("with stripes", "with a striped pattern"),
    "dotted": ("with dots", "with a dotted pattern"),
    "checked": ("with checks", "with a checked pattern"),
}

SIZE: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big"),
}

COUNT_WORD: dict[int, tuple[str, ...]] = {
    1: ("one", "a single"),
    2: ("two", "a pair of"),
    3: ("three", "a trio of"),
}

PLACE: dict[str, tuple[str, ...]] = {
    "white": ("on a white background", "against a white wall", "on white ground"),
    "grey": ("on a grey background", "against a grey wall", "on grey ground"),
    "sky blue": ("on a sky blue background", "against a sky blue wall", "on sky blue ground"),
    "mint": ("on a mint background", "against a mint wall", "on mint ground"),
    "peach": ("on a peach background", "against a peach wall", "on peach ground"),
    "navy": ("on a navy background", "against a navy wall", "on navy ground"),
    "wooden table": ("on a wooden table", "on a table", "on wood"),
    "grass": ("on grass", "on the lawn", "in a garden"),
}

# With the part, for one thing and for several; then without it, likewise.
PART: dict[str, dict[bool, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    category: {
        True: (tuple(with_one), tuple(with_many)),
        False: (tuple(without_one), tuple(without_many)),
    }
    for category, with_one, with_many, without_one, without_many in (
        ("mug", ["with a handle"], ["with handles", "with a handle"],
         ["without a handle", "with no handle"], ["without handles", "with no handle"]),
        ("lamp", ["with a fringe", "with a fringed shade"], ["with fringes", "with a fringe"],
         ["without a fringe", "with no fringe"], ["without fringes", "with no fringe"]),
        ("chair", ["with arms", "with armrests"], ["with arms", "with armrests"],
         ["without arms", "with no armrests"], ["without arms", "with no armrests"]),
        ("bottle", ["with a cap"], ["with caps", "with a cap"],
         ["without a cap", "with no cap"], ["without caps", "with no cap"]),
        ("shoe", ["with laces", "with shoelaces"], ["with laces", "with shoelaces"],
         ["without laces", "with no laces"], ["without laces", "with no laces"]),
        ("bag", ["with a strap"], ["with straps", "with a strap"],
         ["without a strap", "with no strap"], ["without straps", "with no strap"]),
        ("hat", ["with a feather"], ["with feathers", "with a feather"],
         ["without a feather", "with no feather"], ["without feathers", "with no feather"]),
        ("clock", ["with bells", "with bells on top"], ["with bells", "with bells on top"],
         ["without bells", "with no bells"], ["without bells", "with no bells"]),
        ("vase", ["with flowers", "with flowers in it"], ["with flowers", "with flowers in them"],
         ["without flowers", "with no flowers"], ["without flowers", "with no flowers"]),
        ("book", ["with a bookmark"], ["with bookmarks", "with a bookmark"],
         ["without a bookmark", "with no bookmark"], ["without bookmarks", "with no bookmark"]),
        ("shirt", ["with long sleeves"], ["with long sleeves"],
         ["with short sleeves"], ["with short sleeves"]),
        ("umbrella", ["that is open", "opened up"], ["that are open", "opened up"],
         ["that is closed", "folded up"], ["that are closed", "folded up"]),
    )
}  # fmt: skip

# How a change of the part is asked for: it may speak of "the handle", since it is known.
PART_CHANGE: dict[str, dict[bool, tuple[str, ...]]] = {
    "mug": {True: ("with a handle",), False: ("without the handle", "with no handle")},
    "lamp": {True: ("with a fringe",), False: ("without the fringe", "with no fringe")},
    "chair": {
        True: ("with arms", "with armrests"),
        False: ("without the arms", "with no armrests"),
    },
    "bottle": {True: ("with a cap",), False: ("without the cap", "with no cap")},
    "shoe": {True: ("with laces",), False: ("without the laces", "with no laces")},
    "bag": {True: ("with a strap",), False: ("without the strap", "with no strap")},
    "hat": {True: ("with a feather",), False: ("without the feather", "with no feather")},
    "clock": {True: ("with bells",), False: ("without the bells", "with no bells")},
    "vase": {True: ("with flowers",), False: ("without the flowers", "with no flowers")},
    "book": {True: ("with a bookmark",), False: ("without the bookmark", "with no bookmark")},
    "shirt": {True: ("with long sleeves",), False: ("with short sleeves",)},
    "umbrella": {True: ("open", "opened up"), False: ("closed", "folded up")},
}

# Each must read well alone and before another one. {x} is the new value; {one} is "a small one" or
# "small ones", {ones} "one" or "ones", whichever the target's count asks for: a careless "a small
# one" would seem to change the count.
EDIT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "category": (
        "make it {x}", "but {x}", "{x} instead", "not this, {x} instead", "the same, but {x}",
        "change it to {x}", "i want {x} like that", "swap it for {x}", "could it be {x}",
    ),
    "colour": (
        "make it {x}", "but {x}", "in {x}", "{x} instead", "the same, but {x}",
        "the same in {x}", "change the colour to {x}", "i would like it in {x}", "rather {x}",
    ),
    "pattern": (
        "make it {x}", "but {x}", "{x} instead", "the same, but {x}", "{x} this time",
        "i want it {x}", "{clause}", "but {clause}", "show me {one}",
    ),
    "size": (
        "make it {x}", "but {x}", "{one}", "{x} instead", "the same, but {x}", "i need {one}",
        "{x} this time", "can i have {one}",
    ),
    "count": (
        "make it {x}", "but {x} of them", "{x} of them", "{x} instead", "the same, but {x} of them",
        "show me {x}", "i want {x} of these", "there should be {x}", "can i have {x}",
    ),
    "background": (
        "put it {x}", "but {x}", "{x}", "the same, but {x}", "{x} instead", "show it {x}",
        "move it so it is {x}", "now {x}", "can i see it {x}",
    ),
    "part": (
        "but {x}", "{x}", "the same, but {x}", "{x} instead", "{x} this time", "i want it {x}",
        "like this, {x}", "do you have {ones} {x}", "show me {ones} {x}",
    ),
}  # fmt: skip

# New orders of words that the templates above also use, so that what is tested is the phrasing.
HELD_OUT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "category": ("can i see {x}, not this", "there should be {x} instead"),
    "colour": ("can i have it in {x}", "could it be {x}"),
    "pattern": ("do you have it {clause}", "rather {x}"),
    "size": ("do you have {one}", "it should be {x}"),
    "count": ("i would like {x} of them", "rather {x} of these"),
    "background": ("could it be {x}", "like this, but {x}"),
    "part": ("can i see {ones} {x}", "i would like {ones} {x}"),
}

# A second change follows the first: "make it red" + ", and " + "on grass".
SECOND_TEMPLATES: dict[str, tuple[str, ...]] = {
    "category": ("make it {x}", "{x} instead"),
    "colour": ("make it {x}", "in {x}", "{x} instead"),
    "pattern": ("make it {x}", "{x}", "{clause}"),
    "size": ("make it {x}", "{x}", "{one}"),
    "count": ("make it {x}", "{x} of them", "i want {x}"),
    "background": ("put it {x}", "{x}"),
    "part": ("{x}", "i want it {x}"),
}

JOINERS: tuple[str, ...] = (" and ", ", and ", ", ", " and also ")

FUNCTION_WORDS: tuple[str, ...] = (
    "a", "an", "and", "another", "as", "but", "can", "drawing", "for", "from", "have", "image",
    "in", "is", "it", "its", "like", "line", "me", "more", "not", "now", "of", "on", "one", "only",
    "or", "outline", "pencil", "photo", "picture", "please", "same", "show", "similar", "sketch",
    "some", "something", "that", "the", "them", "these", "thing", "things", "this", "those", "to",
    "with", "without", "you",
)  # fmt: skip
