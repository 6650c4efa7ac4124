"""What a response cost, by the public price list that comes with pydantic-ai."""

from pydantic_ai.messages import ModelResponse


def usd_of(response: ModelResponse) -> float:
    """The price in US dollars; 0 for a model that the list does not know, or where the endpoint told no usage."""
    if not response.model_name or response.usage.unmeasured_requests:
        return 0.0
    try:
        return float(response.cost().total_price)
    except LookupError:
        return 0.0
