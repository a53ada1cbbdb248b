"""Tables of what the commands cost, and of what disturbs them."""

from __future__ import annotations

import statistics
from typing import Any

from cells import between, load, row, span, where


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


def endpoint() -> str:
    """The endpoint under load, and over a long time."""
    document = load("endpoint")
    runs = document["runs"]
    loads = {"one at a time": "unloaded", "half the knee": "half",
             "ten times the knee": "overload"}
    lines = [f"**The endpoint** of {document['scorers']} scorers, preset `fast`, on the cores that "
             "the clients have too; latencies from when a request was due, median over "
             f"{len(runs)} runs:", "",
             "| load | answered per second | p50 / p95 / p99, ms | refused | p50 / p99 of "
             "refusals, ms |", "|---|---|---|---|---|"]
    for name, key in loads.items():
        found = [run[key] for run in runs]
        refused = [each for each in found if each["refused_ms"]]
        lines.append(row(name, [
            of_runs([each["goodput_per_s"] for each in found], "{:.1f}"),
            quantiles(found, "accepted_ms", ("p50", "p95", "p99")),
            of_runs([100 * (1 - each["accepted"]) for each in found], "{:.0f}%"),
            quantiles(refused, "refused_ms", ("p50", "p99")) if refused else "-"]))
    best = [max(run["closed"].values(), key=lambda each: each["goodput_per_s"]) for run in runs]
    parts = {"the scorers": "ingress", "Serve's proxy": "proxy", "Ray's other processes": "ray",
             "the clients": "generator"}
    shares = ", ".join(f"{name} {of_runs([each['cpu'][key]['ms_per_image'] for each in best])}"
                       for name, key in parts.items())
    bare = [each["cpu_ms"] for run in runs for each in run["bare"]]
    return "\n".join([*lines, "", (
        "Most answers per second (the knee): "
        f"{of_runs([run['knee_per_s'] for run in runs], '{:.1f}')}, "
        f"{of_runs([run['ratio_to_bare'] for run in runs], '{:.2f}')} of as many bare processes "
        "that decode, score and encode. An image takes them "
        f"{of_runs(bare)} ms of CPU, and here {of_runs([run['knee_cpu_ms'] for run in runs])}: "
        f"{shares}. At ten times the knee as many are answered as "
        f"{of_runs([run['overload']['goodput_to_knee'] for run in runs], '{:.2f}')} of it, p99 is "
        f"{of_runs([run['overload']['accepted_p99_to_unloaded'] for run in runs])} times that of "
        f"one at a time. {soak(document['soak'])} `python benchmarks/endpoint.py DATA`, "
        f"{where(document)}."), ""])


def soak(found: dict[str, Any]) -> str:
    """What a long steady load does to the processes."""
    codes = ", ".join(f"{count} x {code}" for code, count in found["statuses"].items())
    held = []
    for name, of in found["processes"].items():
        kind = {"ingress": "scorer"}.get(name.split()[0], name.split()[0])
        if kind in ("scorer", "proxy", "driver"):
            held.append(f"{kind} {of['rss_mib']['settled']:.0f} to {of['rss_mib']['last']:.0f} MiB "
                        f"and {of['handles']['settled']:.0f} to {of['handles']['last']:.0f} "
                        "handles")
    return (f"{found['seconds'] / 60:.0f} minutes of {found['rate_per_s']:.1f} images/s ({codes}), "
            f"from the second minute to the end: {'; '.join(held)}.")


def quantiles(found: list[dict[str, Any]], which: str, names: tuple[str, ...]) -> str:
    return " / ".join(f"{statistics.median(each[which][name] for each in found):.0f}"
                      for name in names)


def of_runs(values: list[float], form: str = "{:.1f}") -> str:
    """Median, and from the lowest to the highest where that says more."""
    middle, low, high = (form.format(value) for value in (
        statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low}-{high})"
