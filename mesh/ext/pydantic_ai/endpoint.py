"""Any endpoint that speaks OpenAI's chat completions, by settings."""

from urllib.parse import urlsplit

from openai import AsyncOpenAI
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

from mesh.errors import SetupError
from mesh.settings import LLMSettings

NO_KEY = "none"
"""OpenAI's client insists on a key; a local endpoint needs none."""


def model_from_settings(settings: LLMSettings | None = None) -> OpenAIChatModel:
    """The model that `MESH_LLM_*` names; at OpenAI where no `MESH_LLM_BASE_URL` is set.

    The client does not retry: attempts are the mesh's to count.

    Raises:
        SetupError: no model is named, or OpenAI's own endpoint is meant and there is no key.
    """
    found = settings or LLMSettings()
    if not found.model:
        raise SetupError("no model: set MESH_LLM_MODEL, and MESH_LLM_BASE_URL for an endpoint other than OpenAI's")
    key = found.api_key.get_secret_value() if found.api_key else None
    if found.base_url is None:
        if key is None:
            raise SetupError("no key: set MESH_LLM_API_KEY, or MESH_LLM_BASE_URL for an endpoint that needs none")
        client = AsyncOpenAI(api_key=key, max_retries=0, timeout=found.timeout_s)
        return OpenAIChatModel(found.model, provider=OpenAIProvider(openai_client=client))
    client = AsyncOpenAI(base_url=found.base_url, api_key=key or NO_KEY, max_retries=0, timeout=found.timeout_s)
    name = urlsplit(found.base_url).hostname or "openai-compatible"
    return OpenAIChatModel(found.model, provider=OpenAICompatibleProvider(name, openai_client=client))
