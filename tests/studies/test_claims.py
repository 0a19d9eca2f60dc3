"""A run is claimed by one process alone, and the claim of a dead one is free again."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import InputError
from studies import claims
from studies.claims import Database, Locks


@pytest.fixture(params=["locks", "database"])
def make(request, tmp_path):
    """Claims of one more process on the same runs."""
    made = []

    def make():
        made.append(opened(request.param, tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.close()


def opened(kind: str, folder):
    if kind == "locks":
        return Locks(folder / "claims")
    pytest.importorskip("sqlalchemy", reason="optional")
    return Database(f"sqlite:///{folder}/studies.db")


def test_a_run_is_claimed_once_until_it_is_given_back(make):
    ours, others = make(), make()
    assert ours.take("a") and not others.take("a") and others.take("b")
    ours.give_back("a")
    assert others.take("a") and not ours.take("a")


def test_of_many_at_once_one_gets_it(make):
    several = [make() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(lambda one: one.take("a"), several)) == 1


def _hold(kind, folder, taken):
    one = opened(kind, folder)
    taken.put(one.take("a"))
    time.sleep(60)


@pytest.mark.parametrize("kind", ["locks", "database"])
def test_the_claim_of_a_killed_process_is_free(kind, tmp_path):
    one = opened(kind, tmp_path)
    spawn = multiprocessing.get_context("spawn")
    holder = spawn.Process(target=_hold, args=(kind, tmp_path, taken := spawn.Queue()))
    holder.start()
    assert taken.get(timeout=60) and not one.take("a")
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert one.take("a")
    one.close()


# -- machines --------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A database on this machine, and the same as another machine has it."""
    here = opened("database", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        there = opened("database", tmp_path)
    yield here, there
    here.close()
    there.close()


def test_a_claim_of_another_machine_is_free_when_it_was_not_renewed(elsewhere, monkeypatch):
    here, there = elsewhere
    assert there.take("a") and not here.take("a")
    later = time.time() + claims.EXPIRED + 1
    monkeypatch.setattr("time.time", lambda: later)
    there.renew()
    assert not here.take("a")
    monkeypatch.setattr("time.time", lambda: later + claims.EXPIRED + 1)
    assert here.take("a") and not there.take("a")


def test_what_one_machine_has_done_others_get_and_do_not_do_again(elsewhere):
    here, there = elsewhere
    assert there.take("a")
    there.keep("a", "s", {"figures": {"dev_acc": 0.1 + 0.2}})
    there.give_back("a")
    assert list(here.kept()) == [("s", {"figures": {"dev_acc": 0.1 + 0.2}})]
    assert not here.take("a")


def test_a_database_that_cannot_be_opened_is_one_error_without_its_password(tmp_path):
    pytest.importorskip("sqlalchemy", reason="optional")
    with pytest.raises(InputError, match=r"--storage sqlite:////\S+/no/such.db: cannot be opened"):
        Database(f"sqlite:///{tmp_path}/no/such.db")
    with pytest.raises(InputError) as error:
        Database("nosuch://me:secret@host/db")
    assert "secret" not in str(error.value)
