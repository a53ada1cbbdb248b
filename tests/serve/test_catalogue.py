"""What answers for a category while versions come, go and break."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from serving import another_version, damage

from igd import registry
from igd.errors import StorageError
from igd.registry import production
from igd.score.device import CPU
from igd.serve import catalogue as module
from igd.serve.catalogue import Catalogue
from igd.serve.gate import NotReadyError, UnknownCategoryError
from igd.serve.local import LocalScorers
from igd.serve.models import Models


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> str:
    shutil.copytree(tiny_models, tmp_path / "models")
    return str(tmp_path / "models")


@pytest.fixture
def catalogue(models: str) -> Catalogue:
    scorers = LocalScorers(Models(models, fpr=.04, review_fpr=.2, max_bytes=1 << 30, device=CPU))
    return Catalogue(models, scorers.open)


def look(catalogue: Catalogue) -> None:
    asyncio.run(catalogue.look())


def entry_of(catalogue: Catalogue, category: str = "weave") -> module.Entry:
    return next(entry for entry in catalogue.entries if entry.category == category)


def test_nothing_is_known_or_unknown_before_the_first_look(catalogue: Catalogue) -> None:
    assert not catalogue.settled
    with pytest.raises(NotReadyError):
        catalogue.card("nothing")
    look(catalogue)
    assert catalogue.settled and catalogue.card("weave").category == "weave"
    with pytest.raises(UnknownCategoryError):
        catalogue.card("nothing")


def test_a_promotion_and_a_rollback_take_effect_at_the_next_look(catalogue: Catalogue,
                                                                 models: str) -> None:
    look(catalogue)
    first = catalogue.card("weave")
    second = another_version(models, "weave")
    look(catalogue)
    assert catalogue.card("weave") == first  # a version that nobody has promoted
    registry.promote(models, "weave", second)
    assert catalogue.card("weave") == first
    look(catalogue)
    assert catalogue.card("weave").version == second
    assert catalogue.card("weave").threshold != first.threshold
    registry.rollback(models, "weave")
    look(catalogue)
    assert catalogue.card("weave") == first and entry_of(catalogue).state == "ready"


def test_a_version_goes_on_answering_while_the_next_one_is_being_loaded(models: str) -> None:
    seen: list[str] = []

    async def scenario() -> None:
        scorers = LocalScorers(Models(models, fpr=.04, review_fpr=.2, max_bytes=1 << 30))

        async def open_slowly(category: str, version: str) -> module.Card:
            if second == version:
                seen.append(catalogue.card("weave").version)
            return await scorers.open(category, version)

        catalogue = Catalogue(models, open_slowly)
        second = ""
        await catalogue.look()
        first = catalogue.card("weave").version
        second = another_version(models, "weave")
        registry.promote(models, "weave", second)
        await catalogue.look()
        assert seen == [first] and catalogue.card("weave").version == second

    asyncio.run(scenario())


def test_a_damaged_version_never_replaces_a_whole_one(catalogue: Catalogue, models: str,
                                                      monkeypatch) -> None:
    look(catalogue)
    first = catalogue.card("weave")
    second = another_version(models, "weave")
    registry.promote(models, "weave", second)
    damage(models, "weave", second)
    look(catalogue)
    assert catalogue.card("weave") == first
    assert (entry_of(catalogue).state, entry_of(catalogue).failures) == ("stale", 1)
    look(catalogue)
    assert entry_of(catalogue).failures == 1  # not tried again at once
    damage(models, "weave", second)  # whole again
    monkeypatch.setattr(module, "TRY_AGAIN_S", 0)
    look(catalogue)
    assert catalogue.card("weave").version == second and entry_of(catalogue).state == "ready"


def test_a_category_damaged_from_the_start_leaves_the_others(catalogue: Catalogue, models: str
                                                             ) -> None:
    whole = another_version(models, "weave")
    damage(models, "weave", registry.production_version(models, "weave"))
    look(catalogue)
    assert catalogue.settled and catalogue.card("washer").category == "washer"
    with pytest.raises(NotReadyError, match="log"):
        catalogue.card("weave")
    assert entry_of(catalogue).state == "failed"
    registry.promote(models, "weave", whole)
    look(catalogue)  # which is tried at once
    assert catalogue.card("weave").version == whole and entry_of(catalogue).state == "ready"


def test_new_categories_appear_and_vanished_ones_go_on_answering(catalogue: Catalogue,
                                                                 models: str) -> None:
    look(catalogue)
    shutil.copytree(Path(models, "weave"), Path(models, "weft"))
    shutil.rmtree(Path(models, "washer"))
    look(catalogue)
    assert catalogue.card("washer").category == "washer"
    assert [entry.category for entry in catalogue.entries] == ["washer", "weave", "weft"]


def test_an_endpoint_stays_ready_while_a_new_category_is_loaded(models: str) -> None:
    scorers = LocalScorers(Models(models, fpr=.04, review_fpr=.2, max_bytes=1 << 30))
    settled: list[bool] = []

    async def open_model(category: str, version: str) -> module.Card:
        settled.append(catalogue.settled)
        return await scorers.open(category, version)

    catalogue = Catalogue(models, open_model)
    look(catalogue)
    shutil.copytree(Path(models, "weave"), Path(models, "weft"))
    look(catalogue)
    assert settled == [False, False, True]


def test_a_version_that_was_out_of_reach_is_tried_at_the_next_look(catalogue: Catalogue,
                                                                   monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise StorageError("no route to it")

    with monkeypatch.context() as patch:
        patch.setattr(production, "read", fail)
        look(catalogue)
    assert entry_of(catalogue).state == "failed"
    look(catalogue)
    assert entry_of(catalogue).state == "ready"


def test_a_registry_out_of_reach_changes_nothing(catalogue: Catalogue, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise StorageError("no route to it")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "category_folders", fail)
        look(catalogue)
    assert (catalogue.unreachable, catalogue.settled) == (1, False)
    look(catalogue)
    first = catalogue.card("weave")
    monkeypatch.setattr(production, "numbers", fail)
    look(catalogue)
    assert catalogue.card("weave") == first and catalogue.unreachable == 2
