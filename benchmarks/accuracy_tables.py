"""Tables of how well anomalies are found."""

from __future__ import annotations

from cells import between, digits, exists, load, mean_range, over_seeds, row, where

from igd.data.oneclass import CLASS_NAMES

BASELINES = ("mean_brightness", "image_size", "l1_mean_image", "pca", "knn", "mahalanobis",
             "patchcore", "padim")
LADDER = ("shared_isotropic", "position_isotropic", "shared_full", "position_full", "half_shrunk",
          "half_shrunk_pooled")
ONE_CLASS_ROWS = ("ms_ssim", "kd", "kd_dsvdd", "kd_gsvdd", "igd", "igd: reconstruction alone",
                  "igd: descriptor alone", *BASELINES[:6])
SHOWN = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "au_pro": "AU-PRO 30%"}


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
