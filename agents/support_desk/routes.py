"""Where a labelled ticket goes."""

from typing import Final, NamedTuple


class Route(NamedTuple):
    """Who goes on with a ticket, and what is done next."""

    queue: str
    next_action: str


ROUTES: Final = {
    "cancel_order": Route("orders", "Stop the order if it has not left the warehouse."),
    "change_address": Route("orders", "Confirm the new address before the parcel leaves."),
    "damaged_item": Route("returns", "Ask for a photo and send a replacement."),
    "payment_declined": Route("payments", "Look up why the payment was declined."),
    "refund_missing": Route("payments", "Check whether the return has arrived and the refund has left."),
    "return_item": Route("returns", "Send the return label."),
    "size_advice": Route("advice", "Send the size chart of the article."),
    "voucher_not_working": Route("payments", "Check the voucher and book it by hand."),
    "where_is_my_order": Route("orders", "Send the tracking link."),
}


def route(label: str) -> Route:
    """Where a ticket with this label goes; one that is not known here goes to `general`."""
    return ROUTES.get(label) or Route("general", "Answer it.")
