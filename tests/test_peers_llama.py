"""With the extra `peers`: the Llamas of Transformers, saved by it and read here, give its own log-probabilities."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_lm_llama import CONFIG, SHAPES, TOKENS, logprobs

from toy.lm.weights import load_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("shard", ["1GB", "4KB"])
def test_a_llama_of_transformers_gives_its_log_probabilities(
    changes: dict[str, Any], shard: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG | changes)).eval()
    with torch.no_grad():
        for values in theirs.parameters():
            values.copy_(torch.randn_like(values) / 2)
        expected = theirs(torch.tensor(TOKENS)[None]).logits.log_softmax(-1)[0].numpy()
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "1GB")
    np.testing.assert_allclose(logprobs(load_model(tmp_path), TOKENS), expected, rtol=0, atol=1e-5)
