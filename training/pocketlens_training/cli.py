"""`pocketlens-train`: from pictures and a teacher to a student, its heads, and what to compare them with."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.progress import Progress

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Teach a light student to write pictures as sentences that a large text tower reads.\n\n"
    "From photographs to a bundle:\n\n"
    "pocketlens-train distill --teacher open_clip:ViT-B-32/laion2b_s34b_b79k --student efficientnet_b0 "
    "--images photos -o runs/mine\n\n"
    "pocketlens-export bundle runs/mine -o mybundle",
)

LOSSES, SEEN, LOOP, MACHINE = "Losses", "What is seen", "Loop", "Machine"
Device = Annotated[str, typer.Option(rich_help_panel=MACHINE, help="cpu, cuda, or auto (a GPU if there is one).")]
Precision = Annotated[
    str,
    typer.Option(rich_help_panel=MACHINE, help="auto, bf16, fp16 or fp32; auto takes bf16 where the hardware has it."),
]
Threads = Annotated[int, typer.Option(rich_help_panel=MACHINE, min=0, help="CPU threads; 0 leaves it to torch.")]
Workers = Annotated[
    int, typer.Option(rich_help_panel=MACHINE, min=0, help="Processes that read and decode pictures ahead.")
]
KeepGB = Annotated[
    float,
    typer.Option(
        min=0,
        rich_help_panel=MACHINE,
        help="Fitted pictures are kept on disk up to so many GB; else decoded each time.",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="Run folder; the same command resumes there.")]


@app.command()
def sample(
    out: Out,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
    workers: Workers = 0,
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="A recipe of seconds that only proves the code runs.")] = False,
) -> None:
    """Train the sample world's teacher, student and heads, from nothing.

    Draws a catalogue as a set of shards and JSON lines, trains a dual encoder on it, tunes its text tower on edits,
    distils the light student from unlabelled pictures, and trains the heads of the tuned mode with their control.
    Every lesson is the one that `teacher`, `distill` and `heads` give to a set of your own. Killed anywhere, the same
    command goes on where it stopped.

    On to a bundle: pocketlens-export bundle OUT -o DIR
    """
    with _school(out, device, precision, threads) as (where, progress):
        from pocketlens_training.sample import TINY, SampleRecipe, learn_sample

        recipe = TINY if tiny else SampleRecipe()
        if seed is not None:
            recipe = recipe.seeded(seed)
        learn_sample(out, recipe, where=where, progress=progress, workers=workers)


@app.command()
def teacher(
    pairs: Annotated[Path, typer.Option(help='JSON lines: {"image": "a.jpg", "captions": ["..."]}; see below.')],
    out: Out,
    side: Annotated[int, typer.Option(min=16, max=1024, help="Pixels a side that it takes.")] = 96,
    steps: Annotated[
        int,
        typer.Option(
            min=0, help="Optimiser steps; 0 chooses by the size of the set. Edits take two fifths more, at least 200."
        ),
    ] = 0,
    batch: Annotated[int, typer.Option(min=2, help="Pictures in one step.")] = 256,
    rate: Annotated[float, typer.Option(min=0, help="Peak of AdamW's rate.")] = 1.5e-3,
    dim: Annotated[int, typer.Option(min=8, help="Width of the joint space.")] = 256,
    variation: Annotated[str, typer.Option(help="none, shift, crop or crop-mirror, each time a picture is seen.")] = (
        "shift"
    ),
    held_out: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of pictures kept to measure recall on.")
    ] = 0.02,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 20261121,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
) -> None:
    """Train a teacher of your own from pictures and captions: a small dual encoder, for closed domains.

    For icons, parts, scans: where no pretrained model fits or may be used. A line of PAIRS is {"image", "captions":
    [...]}; optionally "group": pictures of one group come into one batch, so that their differences are learned. Lines
    {"image", "caption", "edit"} teach that a later phrase overrides an earlier one: a caption of another picture and
    the words that lead from it to this one. Paths are relative to PAIRS and may lead into a shard: shard.tar/17.png.

    The vocabulary is built from the texts; recall on held-out pictures is measured and kept in OUT/teacher.json.

    Example: pocketlens-train teacher --pairs icons/pairs.jsonl -o teachers/icons

    On to a student: pocketlens-train distill --teacher run:teachers/icons --student tiny --images icons -o runs/icons
    """
    with _school(out, device, precision, threads) as (where, progress):
        from pocketlens_training.teachers.own import TeacherRecipe
        from pocketlens_training.teachers.teach import teach

        recipe = TeacherRecipe(
            side=side, steps=steps, batch=batch, rate=rate, dim=dim, variation=variation, held_out=held_out, seed=seed
        )
        card = teach(pairs, out, recipe, where=where, progress=progress, workers=workers)
        found = ", ".join(f"{name} {value}" for name, value in card["held_out"].items())
        if not card["held_out"]["pictures"]:
            found = "no picture: no group fell to so small a share, raise --held-out to measure recall"
        progress.console.print(f"held out: {found}")


@app.command("distil", hidden=True)
@app.command()
def distill(
    teacher: Annotated[str, typer.Option(help="Its name; `pocketlens-train teachers` lists the forms.")],
    images: Annotated[
        Path, typer.Option(help="A folder, a list, a .tar shard or a folder of them, a datasets folder, a pairs file.")
    ],
    out: Out,
    student: Annotated[str, typer.Option(help="tiny-s, tiny, tiny-l, a model of timm, or one@FILE.safetensors.")] = (
        "efficientnet_b0"
    ),
    tokens: Annotated[int, typer.Option(min=1, max=16, help="Sentence tokens a picture becomes.")] = 4,
    told: Annotated[
        Path | None, typer.Option(help='For composition distillation: {"caption", "edits": [...]} lines.')
    ] = None,
    sketches: Annotated[Path | None, typer.Option(help='{"sketch", "photo"} lines.')] = None,
    sketch: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=SEEN, help="none, edges (of the photos), drawn or drawn-own; default by --sketches."
        ),
    ] = None,
    sketch_share: Annotated[
        float, typer.Option(min=0, max=0.9, rich_help_panel=SEEN, help="Of a batch that is sketches.")
    ] = 0.2,
    pale: Annotated[bool, typer.Option(rich_help_panel=SEEN, help="Give half of the sketches less contrast.")] = True,
    questions: Annotated[
        Path | None, typer.Option(help='Composed queries for the log: {"reference", "text", "targets"} lines.')
    ] = None,
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=LOOP, help="Optimiser steps.")] = 3000,
    batch: Annotated[
        int, typer.Option(min=2, rich_help_panel=LOOP, help="Pictures of one micro-batch, on each device.")
    ] = 256,
    accumulate: Annotated[int, typer.Option(min=1, rich_help_panel=LOOP, help="Micro-batches in one step.")] = 1,
    rate: Annotated[
        float, typer.Option(min=0, rich_help_panel=LOOP, help="Peak of AdamW's rate; 0 chooses by the student.")
    ] = 0.0,
    side: Annotated[
        int,
        typer.Option(min=0, max=1024, rich_help_panel=SEEN, help="Pixels a side on the device; 0: the student's own."),
    ] = 0,
    anchors: Annotated[
        int, typer.Option(min=0, help="Tokens as mixtures of the so many most frequent words; 0: free tokens.")
    ] = 0,
    variation: Annotated[str, typer.Option(rich_help_panel=SEEN, help="none, shift, crop or crop-mirror.")] = "shift",
    gcd: Annotated[
        str, typer.Option(rich_help_panel=LOSSES, help="contrast, relational, both or cosine.")
    ] = "contrast",
    bank: Annotated[
        int, typer.Option(min=0, rich_help_panel=LOSSES, help="Teacher vectors beside the batch as negatives.")
    ] = 4096,
    lar: Annotated[
        str, typer.Option(rich_help_panel=LOSSES, help="none, map, or match (BLIP's matching head).")
    ] = "none",
    lar_weight: Annotated[float, typer.Option(min=0, rich_help_panel=LOSSES, help="Weight of that term.")] = 1.0,
    teacher_scale: Annotated[
        float, typer.Option(min=0.1, rich_help_panel=LOSSES, help="On image cosines, in the relational form.")
    ] = 20.0,
    composition_weight: Annotated[
        float, typer.Option(min=0, rich_help_panel=LOSSES, help="Of composition distillation, with --told.")
    ] = 10.0,
    backbone_factor: Annotated[
        float,
        typer.Option(
            min=0, rich_help_panel=LOOP, help="On the rate, of the backbone; 0: 1 for tiny ones, a third for timm's."
        ),
    ] = 0.0,
    held_out: Annotated[
        int, typer.Option(min=0, rich_help_panel=LOOP, help="Pictures kept from training for the log's figures.")
    ] = 1000,
    average: Annotated[
        float, typer.Option(min=0, max=0.99999, rich_help_panel=LOOP, help="Decay of the weights' mean; 0: none.")
    ] = 0.999,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Without timm's published weights.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option(rich_help_panel=MACHINE, help="Folder of teacher vectors that runs share; default OUT."),
    ] = None,
    keep_gb: KeepGB = 8.0,
    seed: Annotated[int, typer.Option(rich_help_panel=LOOP, help="Of everything random.")] = 20261121,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
) -> None:
    """Distil a light student from a frozen teacher and unlabelled pictures.

    Teacher vectors are computed once and kept by the content of the pictures. Pictures that cannot be read are listed
    in OUT/unreadable.csv. OUT/run.json says all that is needed to repeat the run; OUT/student.csv and OUT/tensorboard
    are its log. Killed anywhere, the same command goes on. On several GPUs: accelerate launch -m pocketlens_training
    distill ...

    Example: pocketlens-train distill --teacher open_clip:ViT-B-32@weights.safetensors --images photos -o runs/mine

    On to a bundle: pocketlens-export bundle OUT -o DIR
    """
    with _school(out, device, precision, threads) as (where, progress):
        from pocketlens_training.distil import distil
        from pocketlens_training.material import Sources
        from pocketlens_training.recipe import DistilRecipe

        if sketch in ("drawn", "drawn-own") and sketches is None:
            raise ValueError(f"--sketch {sketch} needs the drawn ones: --sketches FILE; or take --sketch edges")
        if sketches is not None and sketch in ("none", "edges"):
            raise ValueError(f"--sketches {sketches} is not read with --sketch {sketch}; leave one of them out")
        if told is not None and not composition_weight:
            raise ValueError(f"--told {told} is not read with --composition-weight 0; leave one of them out")
        recipe = DistilRecipe(
            seed=seed, student=student, pretrained=not from_scratch, side=side, tokens=tokens, anchors=anchors,
            batch=batch, accumulate=accumulate, steps=steps, rate=rate, average=average, variation=variation, gcd=gcd,
            bank=bank, teacher_scale=teacher_scale, lar=lar, lar_weight=lar_weight,
            composition_weight=composition_weight, sketches=sketch or ("drawn" if sketches else "none"),
            sketch_share=sketch_share, pale=pale, backbone_factor=backbone_factor, held_out=held_out,
        )  # fmt: skip
        sources = Sources(images=images, told=told, sketches=sketches, questions=questions)
        distil(
            teacher, sources, out, recipe, where=where, progress=progress, workers=workers, cache=cache,
            keep_bytes=int(keep_gb * 1e9),
        )  # fmt: skip


@app.command()
def heads(
    run: Annotated[Path, typer.Argument(help="Run folder with a student.")],
    triplets: Annotated[
        Path | None, typer.Option(help='{"reference", "text", "target"} lines; "caption" of the target is optional.')
    ] = None,
    target: Annotated[
        str, typer.Option(help="What a gallery picture becomes: original, sum, union, union-light, union-gated.")
    ] = "union-gated",
    composition: Annotated[
        str, typer.Option(help="What a query becomes: gated, transagg, plain, pdv:1.2, slerp:0.8, sum:0.5.")
    ] = "gated",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 800,
    rate: Annotated[float, typer.Option(min=0, help="Peak of AdamW's rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 20261121,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
) -> None:
    """Train the heads of the tuned mode on triplets, and their control.

    The control has the same query head, triplets and steps, and leaves the gallery as it is: the difference is the
    target's. A few thousand triplets suffice; encoders stay frozen. What needs no training (plain, pdv, slerp, sum to
    original or sum) needs no triplets.

    Example: pocketlens-train heads runs/mine --triplets triplets.jsonl
    """
    with _school(run, device, precision, threads) as (where, progress):
        from pocketlens_training.further import learn_run_heads
        from pocketlens_training.tuning import HeadRecipe

        recipe = HeadRecipe(seed=seed, composition=composition, target=target, steps=steps, rate=rate)
        learn_run_heads(run, triplets, recipe, where=where, progress=progress, workers=workers)


@app.command()
def symmetric(
    run: Annotated[Path, typer.Argument(help="Run folder with a student.")],
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
) -> None:
    """Train the baseline that asymmetry is compared with: the same token learner upon the large tower's own map.

    Same teacher, photos, number of tokens, steps, GCD and composition distillation as the run's student; no sketches,
    no LAR. It is not deployed; a bundle takes it along for benchmarks."""
    with _school(run, device, precision, threads) as (where, progress):
        from pocketlens_training.further import learn_run_symmetric

        learn_run_symmetric(run, where=where, progress=progress, workers=workers)


@app.command()
def sibling(
    run: Annotated[Path, typer.Argument(help="Run folder of `pocketlens-train distill` or `sample`.")],
    tokens: Annotated[list[int], typer.Option(min=1, help="Tokens it shall write a picture as; repeatable.")],
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
    workers: Workers = 0,
    keep_gb: KeepGB = 8.0,
) -> None:
    """Train further students for the same teacher, which write a picture as other numbers of tokens.

    Same recipe, steps and pictures as the run's own student; only the number of tokens differs. Leaves
    RUN/siblings/k<tokens>. Killed anywhere, the same command goes on where it stopped.

    Example: pocketlens-train sibling runs/sample --tokens 1 --tokens 2 --tokens 8

    On to a device: pocketlens-export sibling RUN --tokens 8 -o DIR
    """
    with _school(run, device, precision, threads) as (where, progress):
        from pocketlens_training.further import learn_siblings

        learn_siblings(run, tokens, where=where, progress=progress, workers=workers, keep_bytes=int(keep_gb * 1e9))


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(help="Run folder with a student.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the page goes; default RUN/inspect.")] = None,
    pictures: Annotated[
        int | None, typer.Option(min=1, max=50, help="Held-out pictures to show; default 8.", show_default=False)
    ] = None,
    picture: Annotated[list[Path] | None, typer.Option(help="A picture of yours instead; repeatable.")] = None,
    words: Annotated[
        str | None, typer.Option(help='What shall change: "in red". Default: the run\'s questions.')
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as one JSON object.")] = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Show a finished student: where each token looks, its nearest words, what its sentences find, how it learned.

    Leaves OUT/index.html, a page that opens anywhere, and beside it attention.png, found.png and, with all numbers,
    inspect.json. Pictures are searched by sentence and words alone, without heads.

    Example: pocketlens-train inspect runs/mine --words "in red"
    """
    _need_torch()
    import torch
    from pocketlens_wire.errors import BadPicture
    from rich.console import Console
    from rich.progress import Progress

    from pocketlens_training.inspection import inspect_run
    from pocketlens_training.inspection_page import write_inspection
    from pocketlens_training.loop import machine, progress_bar

    if picture and pictures is not None:
        _refuse("--pictures counts held-out ones, --picture names your own: give one of them")
    if threads:
        torch.set_num_threads(threads)
    try:
        where = machine(device, "fp32")
        console = Console(stderr=True)  # what is printed shall be the answer alone
        with Progress(*progress_bar().columns, console=console, disable=not console.is_terminal) as progress:
            found = inspect_run(
                run, count=pictures or 8, files=picture or (), words=words, where=where, progress=progress
            )
        made = write_inspection(found, out or run / "inspect")
    except (ValueError, OSError, ArithmeticError, BadPicture) as wrong:
        _refuse(" ".join(str(wrong).split()), because=wrong)
    for note in () if as_json else found.notes:
        typer.echo(note, err=True)
    typer.echo(json.dumps(found.as_json()) if as_json else made[0])


@app.command()
def teachers(
    name: Annotated[
        str | None, typer.Argument(help="One of them: load it, and say what it is. It may be fetched from its hub.")
    ] = None,
) -> None:
    """Which pretrained models can teach, and how they are named.

    Example: pocketlens-train teachers open_clip:ViT-B-32@weights.safetensors"""
    _need_torch()
    from pocketlens_training.teachers.naming import FAMILIES, FORMS, REFUSED, load_teacher
    from pocketlens_training.teachers.teacher import CannotTeach

    if name is None:
        _print_table(("teaches", "for example", "its text tower"), FAMILIES)
        _print_table(("form of a name", "means"), FORMS)
        _print_table(("refused", "because"), REFUSED)
        return
    try:
        teacher = load_teacher(name)
    except CannotTeach as wrong:
        _refuse(str(wrong), because=wrong)
    typer.echo(json.dumps(teacher.card(), indent=2))


def _print_table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table()
    for heading in headings:
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


@contextmanager
def _school(folder: Path, device: str, precision: str, threads: int) -> Iterator[tuple[Accelerator, Progress]]:
    """A machine and a progress bar; a summary at the end; what is wrong with the request as one line."""
    _need_torch()
    import torch
    from pocketlens_wire.errors import PocketlensError

    from pocketlens_training.loop import machine, precision_of, progress_bar

    if threads:
        torch.set_num_threads(threads)
    started = time.monotonic()
    try:
        where = machine(device, precision)
        with progress_bar() as progress:
            progress.disable = not (where.is_main_process and progress.console.is_terminal)
            yield where, progress
    except OSError as wrong:
        full = wrong.errno == errno.ENOSPC
        said = f"no room left on the disk of {folder}: make some, and the same command goes on" if full else str(wrong)
        _refuse(said, because=wrong)
    except (ValueError, ArithmeticError, PocketlensError) as wrong:
        _refuse(str(wrong), because=wrong)
    except torch.OutOfMemoryError as full:
        _refuse(f"{str(full).splitlines()[0]}: take a smaller --batch, picture or model", because=full)
    if where.is_main_process:
        minutes = round((time.monotonic() - started) / 60, 1)
        summary: dict[str, Any] = {
            "run": str(folder), "device": str(where.device), "precision": precision_of(where),
            "processes": where.num_processes, "torch": torch.__version__, "minutes": minutes,
        }  # fmt: skip
        typer.echo(json.dumps(summary))


def _need_torch() -> None:
    try:
        import accelerate  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as missing:
        _refuse(f"{missing.name} is not installed here: pip install 'pocketlens[train]'", because=missing)


def _refuse(message: str, *, because: Exception | None = None) -> NoReturn:
    typer.echo(f"pocketlens-train: {message}", err=True)
    raise typer.Exit(1) from because
