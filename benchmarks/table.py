"""The results tables of the README, from benchmarks/results/.

    python benchmarks/table.py            prints it
    python benchmarks/table.py --write    puts it into README.md, between its two markers
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from igd.data.oneclass import CLASS_NAMES

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


BASELINES = ("mean_brightness", "image_size", "l1_mean_image", "pca", "knn", "mahalanobis",
             "patchcore", "padim")
LADDER = ("shared_isotropic", "position_isotropic", "shared_full", "position_full", "half_shrunk",
          "half_shrunk_pooled")
ONE_CLASS_ROWS = ("ms_ssim", "kd", "kd_dsvdd", "kd_gsvdd", "igd", "igd: reconstruction alone",
                  "igd: descriptor alone", *BASELINES[:6])
SHOWN = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "au_pro": "AU-PRO 30%"}
MACHINE = "{cores} cores ({cpu}), no GPU"
PROOFS = ("containers",)


def load(name: str) -> dict[str, Any]:
    return dict(json.loads(results(name).read_text()))


def results(name: str) -> Path:
    folder = "proofs" if name in PROOFS else "benchmarks"
    return ROOT / folder / "results" / f"{name}.json"


def table() -> str:
    """The sections whose results are there."""
    fast = ["accuracy-bottle-fast", "accuracy-tiles-fast"]
    small = ["accuracy-bottle-small", "accuracy-tiles-small"]
    confirmation = [f"accuracy-reduced-{preset}" for preset in ("fast", "small")]
    sections = [(accuracy, fast + small), (reduced, confirmation), (ladder, fast),
                (one_class, ["fashion-mnist"]), (nets, ["nets"]),
                (spine, ["spine-fast", "spine-small", "spine-tiles"]), (queue, ["train-all"]),
                (batch, ["batch"]), (containers, ["containers"]), (archives, ["archives"]),
                (growth, ["growth"])]
    return "\n".join(section() for section, names in sections if all(map(exists, names)))


def exists(name: str) -> bool:
    return results(name).exists()


def accuracy() -> str:
    """Image AUROC, pixel AUROC and AU-PRO of presets and baselines on bottle and the tiles."""
    lines = ["**Accuracy**, 95% interval over resampled test images; of `small` the mean of the "
             "seeds and the widest interval:", ""]
    documents = {(part, preset): load(f"accuracy-{part}-{preset}")
                 for part in ("bottle", "tiles") for preset in ("fast", "small")}
    columns = [(part, metric) for part in ("bottle", "tiles") for metric in SHOWN]
    lines += ["| method | " + " | ".join(f"{part}, {SHOWN[metric]}" for part, metric in columns)
              + " |", "|---" * (len(columns) + 1) + "|"]
    categories = {key: [next(iter(run["categories"].values())) for run in document["runs"]]
                  for key, document in documents.items()}
    for preset in ("fast", "small"):
        lines.append(row(f"**`{preset}`**", [
            over_seeds([run for run in categories[part, preset]], metric)
            for part, metric in columns]))
    for name in BASELINES:
        lines.append(row(name, [
            over_seeds([categories[part, "fast"][0]["baselines"][name]], metric)
            for part, metric in columns]))
    small = [documents[part, "small"]["runs"] for part in ("bottle", "tiles")]
    told = ", ".join(f"{part} {len(runs)} seed{'s' * (len(runs) > 1)}, training "
                     f"{between([run['train_seconds'] for run in runs])} s"
                     for part, runs in zip(("bottle", "tiles"), small, strict=True))
    lines += ["", f"`python benchmarks/accuracy.py DATA`, {where(*documents.values())}; `small`: "
              f"{told} (the machine was busy with other work). The paper has image AUROC .998 for "
              "bottle."]
    if exists("accuracy-tiles-fast-squash"):
        lines += ["", squashed(), "", false_positives()]
    if exists("refits"):
        lines += ["", *refits()]
    return "\n".join([*lines, ""])


def squashed() -> str:
    """The tiles without the centre crop."""
    document = load("accuracy-tiles-fast-squash")
    category, = document["runs"][0]["categories"].values()
    shown = {"`fast`": category, **{name: category["baselines"][name]
                                    for name in ("patchcore", "padim", "image_size")}}
    told = "; ".join(f"{name} " + " / ".join(over_seeds([found], metric) for metric in SHOWN)
                     for name, found in shown.items())
    kinds = ", ".join(
        f"{name} {digits(kind['image_auroc'])} / {digits(kind['pixel_auroc'])} / "
        f"{digits(kind['au_pro'])}" for name, kind in category["defects"].items())
    most = max(category["defects"], key=lambda name: category["defects"][name]["pixel_share"])
    share = category["defects"][most]["pixel_share"]
    return ("The tiles whole, `--set image.fit=squash`, as training advises where the crop leaves "
            f"out pixels (image AUROC / pixel AUROC / AU-PRO): {told}. `fast` by kind of defect: "
            f"{kinds}; {most}, wide and softly bordered, has {100 * share:.0f}% of the anomalous "
            f"pixels, and pooled pixel AUROC follows it. Commit {document['commit']}.")


def false_positives() -> str:
    """How often `fast` flags normal test images at the rates asked for."""
    told = []
    for name, part in (("bottle", "bottle"), ("tiles", "tiles"), ("tiles whole", "tiles")):
        file = f"accuracy-{part}-fast" + "-squash" * (name == "tiles whole")
        category, = load(file)["runs"][0]["categories"].values()
        rates = [f"{100 * found['asked']:g}% asked {found['realised']:.3f} "
                 f"({found['interval_95'][0]:.3f}-{found['interval_95'][1]:.3f})"
                 for found in category["false_positives"]]
        told.append(f"{name} ({category['false_positives'][0]['normal']} images) "
                    + ", ".join(rates))
    return ("Share of normal test images that `fast` flags at a calibrated false-positive rate "
            f"(95% interval): {'; '.join(told)}.")


def refits() -> list[str]:
    """Mean and range over refits on subsets of the normals."""
    document = load("refits")
    parts = list(dict.fromkeys(run["part"] for run in document["runs"]))
    names = {"bottle": "bottle", "tiles": "tiles, cropped", "squashed": "tiles, whole"}
    lines = [f"Refitted on {len(document['runs']) // len(parts)} random subsets of "
             f"{100 * document['share']:.0f}% of the normals, mean (lowest-highest), image AUROC / "
             "pixel AUROC / AU-PRO:", "",
             row("method", [names[part] for part in parts]), "|---" * (len(parts) + 1) + "|"]
    for method in document["runs"][0]["methods"]:
        cells = []
        for part in parts:
            found = [run["methods"][method] for run in document["runs"] if run["part"] == part]
            cells.append(" / ".join(mean_range([each[metric] for each in found])
                                    for metric in SHOWN if metric in found[0]))
        lines.append(row(f"**`{method}`**" if method == "fast" else method, cells))
    return [*lines, "", f"`python benchmarks/refits.py DATA`, {where(document)}."]


def mean_range(values: list[float]) -> str:
    return (f"{digits(sum(values) / len(values))} "
            f"({digits(min(values))}-{digits(max(values))})")


def reduced() -> str:
    """The two small categories, looked at once."""
    found = []
    documents = [load(f"accuracy-reduced-{preset}") for preset in ("fast", "small")]
    for preset, document in zip(("fast", "small"), documents, strict=True):
        for name in document["runs"][0]["categories"]:
            runs = [run["categories"][name] for run in document["runs"]]
            figures = ", ".join(f"{label} {over_seeds(runs, metric)}"
                                for metric, label in SHOWN.items())
            found.append(f"- {name}, `{preset}`: {figures}")
    return "\n".join(["Once, as confirmation (ten test images each, too few for a claim):", "",
                      *found, ""])


def ladder() -> str:
    """The descriptors between the paper's and preset fast's."""
    parts = [load(f"accuracy-{part}-fast")["runs"][0]["categories"] for part in
             ("bottle", "tiles")]
    bottle, tile = (next(iter(part.values()))["ladder"] for part in parts)
    lines = ["**The descriptor ladder**, image AUROC / pixel AUROC / AU-PRO (`igd-ray evaluate "
             "--ladder`):", "", "| descriptor | bottle | tiles |", "|---|---|---|"]
    for name in LADDER:
        lines.append(row(name, [" / ".join(digits(of[name][metric]) for metric in SHOWN)
                                for of in (bottle, tile)]))
    return "\n".join([*lines, ""])


def one_class() -> str:
    """Fashion-MNIST."""
    found = load("fashion-mnist")
    classes = found["classes"]
    seeds = len(next(iter(found["rows"]["igd"]["classes"].values())))
    lines = [f"**Fashion-MNIST, one class normal**, preset `{found['preset']}`, image AUROC with "
             f"95% interval, {seeds} seeds (mean, widest interval; last column the mean of the "
             "classes and its range over seeds):", "",
             row("method", [*classes, "mean"]), "|---" * (len(classes) + 2) + "|"]
    for name in ONE_CLASS_ROWS:
        of, cells = found["rows"][name], []
        for each in (of["classes"][label] for label in classes):
            value = sum(seed["value"] for seed in each) / len(each)
            cells.append(f"{digits(value)} ({digits(min(seed['low'] for seed in each))}-"
                         f"{digits(max(seed['high'] for seed in each))})")
        low, high = map(digits, of["seeds_from_to"])
        lines.append(row(name, [*cells, digits(of["mean"])
                                + ("" if low == high else f" ({low}-{high})")]))
    labels = ",".join(str(CLASS_NAMES["fashion-mnist"].index(name)) for name in classes)
    cores = load("spine-small")["machine"]["cores"]
    told = (f"`igd-ray evaluate DIR --protocol fashion-mnist --classes {labels} --seeds {seeds} "
            f"--ablation`: {found['seconds'] / 60:.0f} min on {cores} cores, commit "
            f"{found['commit']}. The paper has "
            f"{digits(found['paper_mean_of_ten_classes']['single'])} over ten classes, at full "
            "width and schedule.")
    return "\n".join([*lines, "", told, ""])


def nets() -> str:
    """What each attempt to make the trained nets earn their cost brings."""
    document = load("nets")
    lines = ["**Do the trained nets earn their cost?** Image AUROC of variants of `small` beside "
             "`fast` on the same normals, a value per seed:", "",
             "| set, variant | Eq. 11 | standardised | `fast` + standardised | pixel AUROC | "
             "AU-PRO | training, s |", "|---|---|---|---|---|---|---|"]
    keys = dict.fromkeys((run["category"], run["variant"]) for run in document["runs"])
    for category, variant in sorted(keys, key=lambda key: key[0]):
        runs = [run for run in document["runs"]
                if (run["category"], run["variant"]) == (category, variant)]

        def each(values: list[float]) -> str:
            return ", ".join(map(digits, values))

        mixes = ["standardised", "fast + standardised"] if "image_auroc_of" in runs[0] else []
        lines.append(row(f"{category}, {variant}", [
            each([run["image_auroc"][0] for run in runs]),
            *(each([run["image_auroc_of"][mix][0] for run in runs]) for mix in mixes),
            *([] if mixes else ["", ""]),
            *(each([run[metric][0] for run in runs]) for metric in ("pixel_auroc", "au_pro")),
            between([run["seconds"] for run in runs]) if mixes else ""]))
    measured = where(*({**run, "machine": document["machine"]} for run in document["runs"]))
    return "\n".join([*lines, "", f"`python benchmarks/nets.py DATA` (what each variant changes "
                      f"stands there), {document['max_train']} normals each, {measured}.", ""])


def spine() -> str:
    """What the commands cost."""
    fast, small, tiles = (load(f"spine-{part}") for part in ("fast", "small", "tiles"))
    lines = [
        "**Cost**, `python benchmarks/spine.py DATA`:", "",
        "| category, preset | image AUROC | pixel AUROC | training, s | scoring, images/s on one "
        "thread | normals flagged at 5% (95% interval) |",
        "|---|---|---|---|---|---|"]
    for document, preset in ((fast, "fast"), (small, "small")):
        for category in document["runs"][0]["categories"]:
            lines.append(category_row(category, preset, document["runs"]))
    lines += ["", "| command | seconds | peak memory, MB |", "|---|---|---|"]
    for document, name in ((fast, "`train-all`, three categories, `fast`"),
                           (fast, "`evaluate`, the same"),
                           (small, "`train bottle`, `small`"),
                           (tiles, "`train MT_Free`, 952 images, `fast`"),
                           (tiles, "`score` of 1,344 tiles and 10 broken files in a tar")):
        step = {"`tr": "train_all" if document is fast else "train", "`ev": "evaluate",
                "`sc": "score"}[name[:3]]
        spread = document["spread"][step]
        lines.append(f"| {name} | {span(spread['seconds'])} | {span(spread['peak_memory_mb'])} |")
    return "\n".join([*lines, "", prose(fast, small, tiles), "", terms(small), ""])


def queue() -> str:
    """What `train-all` costs beside the trainings."""
    document = load("train-all")
    lines = ["**The queue of `train-all`**: tiny categories, one torch thread each, seconds of the "
             "same trainings; ratios to one process, medians over interleaved runs:", "",
             "| categories, preset | in one process, s | queue, one at a time | queue, all CPUs | "
             "TorchTrainers, one at a time |", "|---|---|---|---|---|"]
    keys = dict.fromkeys((run["count"], run["preset"]) for run in document["runs"]
                         if "repeat" in run)
    for count, preset in sorted(keys):
        runs = [run for run in document["runs"]
                if (run["count"], run["preset"]) == (count, preset) and "repeat" in run]
        lines.append(row(f"{count}, {preset}", [
            between([run["in_process_s"] for run in runs]),
            *(ratio(runs, name) for name in ("one_at_a_time_s", "all_cpus_s", "trainers_s"))]))
    told = [many(run) for run in document["runs"] if "driver_mb_by_quarter" in run]
    measured = where({"commit": document["commit"], "machine": document["machine"]})
    return "\n".join([*lines, "", " ".join([*told, f"`python benchmarks/train_all.py`, {measured}."
                                            ]), ""])


def ratio(runs: list[dict[str, Any]], name: str) -> str:
    """Median, lowest and highest of the ratios to one process; of trainers also the seconds."""
    found = sorted(run[name] / run["in_process_s"] for run in runs if name in run)
    if not found:
        return "-"
    text = f"{statistics.median(found):.2f} ({found[0]:.2f}-{found[-1]:.2f})"
    if name != "trainers_s":
        return text
    more = [(run[name] - run["in_process_s"]) / run["count"] for run in runs if name in run]
    return f"{text}: {between(more)} s more each"


def many(run: dict[str, Any]) -> str:
    """Whether the queue gets slower or larger with the number of categories."""
    each = (run["one_at_a_time_s"] - run["in_process_s"]) / run["count"]
    quarters = [" / ".join(map(str, run[name])) for name in ("seconds_by_quarter",
                                                             "driver_mb_by_quarter")]
    return (f"{run['count']} categories, `{run['preset']}`, one at a time: "
            f"{run['one_at_a_time_s']:.0f} s against {run['in_process_s']:.0f} in one process, "
            f"{each:.2f} s more each; by quarters {quarters[0]} s, the driver's memory "
            f"{quarters[1]} MB.")


def batch() -> str:
    """What the batch pipeline costs beside its work."""
    document = load("batch")
    lines = [f"**The batch pipeline** beside {document['scorers']} bare processes that read, "
             "decode, score, encode and write the same shards without Ray; images/s once all are "
             "warm, medians over interleaved runs:", "",
             "| | on Ray | bare | ratio |", "|---|---|---|---|"]
    for name, null in (("scoring", False), ("null scorer", True)):
        rates = {on: [run["steady_images_per_s"] for run in document["runs"]
                      if (run["null"], run["on"]) == (null, on)] for on in ("ray", "bare")}
        found = document["ratio"][name]
        lines.append(row(name, [
            *(f"{statistics.median(rates[on]):.1f} ({min(rates[on]):.1f}-{max(rates[on]):.1f})"
              for on in ("ray", "bare")),
            f"{found['median']:.2f} ({found['min']:.2f}-{found['max']:.2f})"]))
    start = [run["stage_seconds"]["start"] for run in document["runs"] if run["on"] == "ray"]
    profile = document["profile"]
    shares = ", ".join(f"{name} {profile[name]:.0%}" for name in ("decode", "resize",
                                                                  "write_shard"))
    return "\n".join([*lines, "", (
        f"{document['images']} photographs in a tar, preset `fast`, all heatmaps; the pool started "
        f"in {min(start):.0f}-{max(start):.0f} s. One process with the null scorer under a "
        f"profiler, {profile['images_per_s']:.0f} images/s: {shares}. `python benchmarks/batch.py "
        f"DATA`, {where(document)}."), ""])


def archives() -> str:
    """Memory and workers on one huge archive."""
    document = load("archives")
    lines = ["**One huge archive** on an S3 server of the same machine, null scorer:", "",
             "| | members | GiB | seconds | images/s, steady | driver, MB | a worker, MB | "
             "workers busy at once |", "|---" * 8 + "|"]
    for kind, found in document["archives"].items():
        busy = found["busy_workers"]
        lines.append(row(kind, [
            f"{found['members']:,}", f"{found['bytes'] / 2**30:.2f}", f"{found['seconds']:.0f}",
            f"{found['steady_images_per_s']:.0f}", str(found["peak_mb"]["driver"]),
            str(found["peak_mb"]["worker"]), f"{busy['mean']} ({busy['most']} at most)"]))
    return "\n".join([*lines, "", "Peaks of the proportional set size; of workers, of the largest. "
                      f"`python benchmarks/archives.py DATA`, {where(document)}.", ""])


def containers() -> str:
    """How many bits depend on what holds the images."""
    document = load("containers")
    runs = document["runs"]
    kinds = ", ".join(sorted({run["container"] for run in runs}))
    differing = sum(found["rows"] for run in runs for found in run["differing"].values())
    readers = list(document["readers"]["s3"])[1:]
    return "\n".join([
        f"**The same bits, whatever holds the images**: {document['images']:,} photographs as "
        f"{kinds}, each on a local disk and on an S3 server of the same machine, in shards of at "
        f"most {between([run['shard_members'] for run in runs])} images, by "
        f"{between([run['workers'] for run in runs])} scorers: {len(runs)} runs, {differing} rows "
        "that differ from the first run's, or from what one process says without Ray, in score, "
        "terms, p-value, decision, regions, heatmap or fingerprint. "
        f"{', '.join(readers[:-1])} and {readers[-1]} read the same rows and heatmaps. "
        f"`PYTHONPATH=tests python proofs/containers.py DATA`, {where(document)}.", ""])


def growth() -> str:
    """What an image costs as dumps grow."""
    document = load("growth")
    scored = "; ".join(f"{run['members']:,} images {run['ms_per_image']:.2f} ms, "
                       f"{run['driver_peak_mb']} MB" for run in document["scored"])
    planned = "; ".join(f"{run['members']:,} members {run['us_per_member']:.0f} \u00b5s, "
                        f"{run['peak_mb']} MB" for run in document["planned"])
    return "\n".join([
        "**As dumps grow**, time per image after the start of Ray and peak memory of the driver, "
        f"null scorer: {scored}. Planning alone, made-up listing: {planned}. `python "
        f"benchmarks/growth.py`, {where(document)}.", ""])


def terms(small: dict[str, Any]) -> str:
    """What training `small` on bottle did to each term."""
    found = small["runs"][0]["curve"]
    names = {"reconstruction": "reconstruction", "gsvdd": "GSVDD", "sigma2": "sigma^2",
             "critic": "critic", "adversarial": "adversarial", "distillation": "distillation"}
    told = [f"{phase.split()[0]} {label} {ends['first'][name]:.2g} to {ends['last'][name]:.2g}"
            for phase, ends in found.items() for name, label in names.items()
            if name in ends["first"]]
    return ("Terms of `train bottle`, `small`, from the first step (a distillation: its first "
            f"twentieth) to the last epoch's mean: {', '.join(told)}.")


def category_row(category: str, preset: str, runs: list[dict[str, Any]]) -> str:
    numbers = [run["categories"][category] for run in runs]
    first = numbers[0]
    low, high = first["fpr_interval_95"]
    seconds = [run["train_seconds"][category] for run in runs]
    rates = [entry["images_per_s"] for entry in numbers]
    return (f"| {category}, `{preset}` | {first['image_auroc']:.3f} | {first['pixel_auroc']:.3f} "
            f"| {between(seconds)} | {between(rates)} | {first['fpr_realised']:.2f} "
            f"({low:.2f}-{high:.2f}) |")


def prose(fast: dict[str, Any], small: dict[str, Any], tiles: dict[str, Any]) -> str:
    summaries = [run["summary"] for run in tiles["runs"]]
    one = summaries[0]
    steady = between([summary["steady_images_per_s"] for summary in summaries])
    whole = between([summary["images_per_s"] for summary in summaries])
    commits = sorted({document["commit"] for document in (fast, small, tiles)})
    machine = fast["machine"]
    return (f"The tar: {one['planned']:,} members planned, {one['scored']:,} scored, "
            f"{sum(one['rejected'].values())} rejected; {steady} images/s once the pool was warm, "
            f"{whole} with the start of Ray, the audit and the commit. Commit "
            f"{', '.join(commits)}; {machine['cores']} cores ({machine['cpu']}), no GPU, Python "
            f"{machine['python']}; ranges are over {len(fast['runs'])} runs "
            f"({len(small['runs'])} of `small`), AUROC was the same in all. Memory is the sum of "
            "the proportional set sizes of the command and all it started, Ray's own included.")


def row(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def over_seeds(runs: list[dict[str, Any]], metric: str) -> str:
    """Mean over seeds, and from the lowest to the highest bound of their intervals."""
    if runs[0][metric] is None:
        return "-"
    bounds = [run["intervals_95"][metric] for run in runs]
    return (f"{digits(sum(run[metric] for run in runs) / len(runs))} "
            f"({digits(min(low for low, _ in bounds))}-{digits(max(high for _, high in bounds))})")


def digits(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def where(*documents: dict[str, Any]) -> str:
    commits = ", ".join(sorted({document["commit"] for document in documents}))
    return f"commit {commits}, {MACHINE.format(**documents[0]['machine'])}"


def span(values: dict[str, float]) -> str:
    return between([values["min"], values["max"]])


def between(values: list[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low}-{high}"


def main() -> None:
    if "--write" not in sys.argv:
        print(table())
        return
    readme = ROOT / "README.md"
    head, rest = readme.read_text().split(BEGIN)
    readme.write_text(head + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
