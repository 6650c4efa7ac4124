"""How many slots to offer now."""


def slots_to_offer(slots: int, in_flight: int, offered: int) -> int:
    """Free slots to put into one more pull, 0 to wait.

    Every pull costs a message, so returned slots are collected while others are still on offer: with one
    slot each is offered at once, with a hundred a deep queue is fetched in batches of fifty.
    """
    free = slots - in_flight - offered
    if free <= 0:
        return 0
    return free if offered == 0 or 2 * free >= slots else 0
