"""Objects between a cache and a remote: hashed both ways, contained, and never written by a pull."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from capgap.errors import CapgapError
from capgap.workflow import private, stores


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


class Place:
    """A folder with a cache in .dvc and a folder beside it as remote."""

    def __init__(self, tmp_path):
        self.store = tmp_path / "storage"
        self.store.mkdir()
        settings = {
            "core": {"remote": "storage"},
            "remote": {"storage": {"url": str(self.store)}},
            "cache": {},
        }
        self.remote = private.open_remote(settings)
        self.cache = stores.Cache(settings)

    def stored(self, oid: str) -> Path:
        return self.store / private.object_name(oid)

    def put_remote(self, data: bytes, oid: str | None = None) -> str:
        oid = oid or md5(data)
        self.stored(oid).parent.mkdir(parents=True, exist_ok=True)
        self.stored(oid).write_bytes(data)
        return oid

    def put_here(self, data: bytes, oid: str | None = None) -> str:
        oid = oid or md5(data)
        self.cache.path(oid).parent.mkdir(parents=True, exist_ok=True)
        self.cache.path(oid).write_bytes(data)
        return oid


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "study")
    return Place(tmp_path)


def test_what_arrives_is_hashed_and_the_remote_stays_as_it_was(place):
    whole, damaged = place.put_remote(b"whole"), place.put_remote(b"bad", md5(b"good"))
    place.stored(damaged).chmod(0o444)
    files = {"a": whole, "b": damaged, "c": md5(b"nowhere")}
    assert stores.fetch(place.remote, place.cache, files) == (["c"], ["b"])
    assert place.cache.path(whole).read_bytes() == b"whole"
    assert not place.cache.path(damaged).exists()
    assert place.stored(damaged).read_bytes() == b"bad"


def test_damaged_object_of_the_cache_is_fetched_again(place):
    oid = place.put_remote(b"whole")
    place.put_here(b"rotten", oid)
    assert stores.fetch(place.remote, place.cache, {"a": oid}) == ([], [])
    assert place.cache.path(oid).read_bytes() == b"whole"


def test_damaged_object_is_not_sent(place):
    oid = place.put_here(b"rotten", md5(b"whole"))
    assert stores.send(place.remote, place.cache, [oid]) == ([oid], 0)
    assert not place.stored(oid).exists()


def test_object_that_a_killed_push_cut_off_is_sent_again(place):
    oid = place.put_here(b"whole")
    place.put_remote(b"who", oid)
    assert stores.send(place.remote, place.cache, [oid]) == ([], 1)
    assert place.stored(oid).read_bytes() == b"whole"
    assert stores.send(place.remote, place.cache, [oid]) == ([], 0)


@pytest.mark.parametrize("protocol", ["local", "ssh"])
def test_two_users_push_the_same_object_at_once(place, monkeypatch, protocol):
    """The second pushes all of it while the first is half done."""
    kind = type(place.remote.fs)
    monkeypatch.setattr(kind, "protocol", protocol)
    oid, put, targets = place.put_here(b"whole"), kind.put_file, []

    def meanwhile(self, source, target, **options):
        targets.append(target)
        if len(targets) == 1:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).write_bytes(b"who")
            other = stores.Cache({"cache": {}})
            assert stores.send(place.remote, other, [oid])[0] == []
        put(self, source, target, **options)

    monkeypatch.setattr(kind, "put_file", meanwhile)
    assert stores.send(place.remote, place.cache, [oid])[0] == []
    assert place.stored(oid).read_bytes() == b"whole"
    assert [p.name for p in place.stored(oid).parent.iterdir()] == [oid[2:]]
    if protocol == "ssh":
        assert len(set(targets)) == 2


def test_listing_is_sent_last(place, monkeypatch):
    order = []
    put = type(place.remote.fs).put_file

    def noting(self, source, target, **options):
        order.append(target)
        return put(self, source, target, **options)

    monkeypatch.setattr(type(place.remote.fs), "put_file", noting)
    entries = [place.put_here(bytes([n])) for n in range(20)]
    data = json.dumps(entries).encode()
    folder = place.put_here(data, f"{md5(data)}.dir")
    assert stores.send(place.remote, place.cache, [folder, *entries]) == ([], 21)
    assert order[-1].endswith(".dir")


ESCAPES = [
    "../../yaml.py",
    "/etc/cron.d/x",
    "a/../../../b",
    "..",
    "",
    "a//b",
    "a\\..\\b",
    "a\0b",
    "./a",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_listing_that_leaves_its_folder_is_refused(tmp_path, name):
    path = tmp_path / "listing"
    path.write_text(json.dumps([{"md5": "0" * 32, "relpath": name}]))
    with pytest.raises(CapgapError, match="outside that folder"):
        stores.listing(path, "results/tiny", 1)


@pytest.mark.parametrize(
    "entries",
    [
        {},
        [{"relpath": "a"}],
        [{"md5": "../../x", "relpath": "a"}],
        [{"md5": "0" * 32 + ".dir", "relpath": "a"}],
        [{"md5": 3, "relpath": "a"}],
        ["a"],
        [{"md5": "0" * 32, "relpath": "a"}, {"md5": "0" * 32, "relpath": "a/b"}],
    ],
)
def test_malformed_listing_is_refused(tmp_path, entries):
    path = tmp_path / "listing"
    path.write_text(json.dumps(entries))
    with pytest.raises(CapgapError, match="saved listing of results/tiny"):
        stores.listing(path, "results/tiny", None)


def test_listing_with_another_number_of_files_than_the_lock_is_refused(tmp_path):
    path = tmp_path / "listing"
    path.write_text(json.dumps([{"md5": "0" * 32, "relpath": "a"}]))
    assert stores.listing(path, "results/tiny", 1) == {"results/tiny/a": "0" * 32}
    with pytest.raises(CapgapError, match=r"has 1 files, dvc.lock counts 212"):
        stores.listing(path, "results/tiny", 212)


def test_link_that_leads_out_of_the_study_is_not_written_through(place, tmp_path):
    outside = tmp_path / "home"
    outside.mkdir()
    Path("results").symlink_to(outside)
    oid = place.put_here(b"x")
    with pytest.raises(CapgapError, match=r"results is a link to .*home"):
        stores.Placer(place.cache).put("results/tiny/a", oid)
    assert list(outside.iterdir()) == []


def test_link_in_place_of_a_file_is_replaced_not_followed(place, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    Path("results").mkdir()
    Path("results/a").symlink_to(victim)
    placer = stores.Placer(place.cache)
    assert not placer.is_same("results/a", md5(b"mine"))
    placer.put("results/a", place.put_here(b"x"))
    assert victim.read_bytes() == b"mine"
    assert Path("results/a").read_bytes() == b"x"
    assert not Path("results/a").is_symlink()


def test_file_in_place_can_be_written_and_the_cache_stays_whole(place):
    oid = place.put_here(b"x" * 10_000)
    os.chmod(place.cache.path(oid), 0o444)
    stores.Placer(place.cache).put("results/a", oid)
    Path("results/a").write_bytes(b"edited")
    assert place.cache.holds(oid)
