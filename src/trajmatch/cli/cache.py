"""`trajmatch cache`: the decoded images that are kept on disk."""

from __future__ import annotations

import dataclasses

from trajmatch.cli.flags import Common


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """List the cache of decoded images: pictures are decoded once for each data set and size. Its
    folder is TRAJMATCH_CACHE, or trajmatch in the user's folder of caches. All files together take
    at most TRAJMATCH_CACHE_SIZE (such as 20GB; 4 GB where it is not set); those used longest ago
    are removed.
    """

    clear: bool = False
    """Remove all of them. They are written anew when they are needed."""


def run(flags: Flags) -> None:
    from datetime import datetime

    from trajmatch.data import cache
    from trajmatch.units import byte_size

    found = cache.clear() if flags.clear else cache.entries()
    total = byte_size(sum(entry.bytes for entry in found))
    places = ", ".join(map(str, cache.folders())) or "no folder"
    if flags.clear:
        print(f"removed {len(found)} files, {total}, from {places}")
        return
    if found:
        rows = [("size", "used", "images", "source")]
        for entry in found:
            about = entry.about()
            used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
            images = "" if about["images"] is None else f"{about['images']:,}"
            rows.append((byte_size(entry.bytes), used, images, str(about["source"])))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip())
    print(f"{len(found)} files, {total} of at most {byte_size(cache.largest_size())}, in {places}")
