"""Small words that many messages share: a count with its noun, a size in memory."""


def counted(count, one, many=None):
    """Return a count with its noun: "1 image", "2,000 images"; many: the plural that is not `one` + s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def memory(gib):
    """Return GiB (2**30 bytes) as words: "13.0 GiB", "320 MiB" below one."""
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"
