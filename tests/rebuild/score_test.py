#!/usr/bin/env python3
"""Rebuilds trained models from their checkpoints, by docs/parameters.md, and compares log-probabilities with orchard score.

    tests/rebuild/score_test.py build/release/bin/orchard              packs a little of the sample, trains a few steps
    tests/rebuild/score_test.py build/release/bin/orchard RUN_FOLDER   uses the checkpoints of finished runs

Needs NumPy and h5py.
"""

import configparser
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from model import IMAGE_TOKEN, Model
from pictures import tiles_of, write_png

# fp32 against fp64: 6e-6 was seen at most. Of the faults tried, the smallest (transparency rounded down) costs 6e-3.
TOLERANCE = 5e-5

root = pathlib.Path(__file__).resolve().parents[2]
environment = {name: value for name, value in os.environ.items() if not name.startswith("ORCHARD_")}
environment["TERM"] = "dumb"


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], env=environment, text=True, capture_output=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def train_a_little(orchard, folder):
    """Two runs of nano-moe, the second with options that the recipe leaves at their defaults."""
    categories = ("caption_words", "interleaved", "math", "multi_image", "ocr_lines", "ocr_regions", "ocr_words",
                  "refer_ground", "text_only", "text_rich")
    run(orchard, "pack", root / "data/sample", "--vocabulary", 384, "--out", folder / "training_set",
        *(f"--limit={name}=20" for name in categories))
    short = ["run.micro_batch=1", "run.validation_samples=1"]
    for stage in (1, 2, 3):
        short += [f"stage{stage}.{option}" for option in ("steps=2", "global_batch=1", "warmup=0")]
    # So few places that experts drop tokens.
    other = ["moe.capacity_factor=1", "vision.features=penultimate", "stage1.tiling=dynamic", "stage1.grid_reading=fit",
             "stage1.min_tiles=1", "stage1.max_tiles=6", "stage2.steps=0", "stage3.steps=0"]
    runs = {"nano-moe": short, "other": short + other}
    for name, settings in runs.items():
        run(orchard, "train", "--recipe", "nano-moe", "--training-set", folder / "training_set", "--run-folder", folder / name,
            *(f"--set={setting}" for setting in settings))
    return [folder / name for name in runs]


def some_picture(generator, height, width, channels=3):
    """Smooth, with sharp edges and noise, so that no two pixels or channels may be confused."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / (7 + 3 * c) + y / (11 - 2 * c) + c) for c in range(channels)]
    return np.clip(np.stack(waves, -1) + generator.normal(0, 20, (height, width, channels)), 0, 255).astype(np.uint8)


def stage_options(run_folder, model):
    recipe = configparser.ConfigParser(inline_comment_prefixes=["#"])
    recipe.read(run_folder / "resolved.ini")
    options = {name: int(value) if value.isdigit() else value for name, value in recipe[f"stage{model.stage}"].items()}
    return {**options, "side": model.config["vision.side"], "patch": model.config["vision.patch"]}


def check(orchard, checkpoint, run_folder, folder):
    generator = np.random.default_rng(1)
    model = Model(checkpoint)
    options = stage_options(run_folder, model)
    text = lambda count: generator.integers(8, model.config["decoder.vocabulary"], count).tolist()
    cases = [("text", []), ("one picture", [(97, 160)]), ("a tall picture", [(700, 150, 4)]), ("a large picture", [(500, 613)]),
             ("two pictures", [(224, 224), (33, 290)]), ("three pictures", [(60, 80), (130, 90), (7, 5, 4)])]
    requests, expected = [], []
    for name, sizes in cases:
        tokens, tiles, paths = [1, *text(9)], [], []
        for size in sizes:
            pixels = some_picture(generator, *size)
            paths.append(folder / f"{len(requests)}-{len(paths)}.png")
            write_png(paths[-1], pixels)
            for tile in tiles_of(pixels, len(sizes), options):
                tiles.append(tile)
                tokens += [*text(3), *[IMAGE_TOKEN] * model.config["connector.out_side"] ** 2]
        tokens += [*text(30), 2]
        requests.append(json.dumps({"tokens": tokens, "images": [str(path) for path in paths]}))
        expected.append(model.logprobs(tokens, tiles))
    answers = run(orchard, "score", "--checkpoint", checkpoint, "--dtype", "f32", input="\n".join(requests) + "\n")
    failed = False
    for (name, _), line, values in zip(cases, answers.splitlines(), expected, strict=True):
        given = json.loads(line)["logprobs"]
        if [value is None for value in given] != [value is None for value in values]:
            sys.exit(f"{checkpoint}, {name}: other places are null")
        worst = max(abs(a - b) for a, b in zip(given, values) if a is not None)
        mean = np.mean([value for value in values if value is not None])
        print(f"{run_folder.name}, {checkpoint.stem}, {name}: {len(values)} tokens, mean {mean:.4f}, largest difference {worst:.1e}")
        failed = failed or not worst <= TOLERANCE
    return failed


def main():
    orchard = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        run_folders = [pathlib.Path(name) for name in sys.argv[2:]] or train_a_little(orchard, folder)
        found = [(file, run_folder) for run_folder in run_folders for file in sorted(run_folder.glob("checkpoints/*.h5"))]
        failed = [file for file, run_folder in found if check(orchard, file, run_folder, folder)]
    if failed or not found:
        sys.exit(f"{len(failed)} of {len(found)} checkpoints differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
