"""BERT's body against transformers, padded batches too."""

from pathlib import Path

import pytest
import torch

from qkv.weights.bert import load_bert
from qkv.weights.folder import Folder

transformers = pytest.importorskip("transformers")


def test_bert_equals_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    theirs = transformers.BertModel(transformers.BertConfig(vocab_size=99, max_position_embeddings=40, **shape)).eval()
    for name, parameter in theirs.named_parameters():
        with torch.no_grad():
            if "LayerNorm.weight" in name:
                parameter.normal_(1, 0.3)
            else:
                parameter.normal_(0, 0.1 if parameter.ndim == 1 else 0.3)
    theirs.save_pretrained(tmp_path)
    ours = load_bert(Folder(tmp_path))

    ids = torch.randint(0, 99, (3, 12))
    segments = (torch.arange(12) > 6).long().expand(3, -1)
    mask = torch.arange(12)[None] < torch.tensor([12, 7, 1])[:, None]
    with torch.no_grad():
        expected = theirs(ids, mask.long(), segments).last_hidden_state[mask]
        result = ours(ids, mask, segments)[mask]
    assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()
    pooled = ours.embed(ids, mask).detach()
    torch.testing.assert_close(pooled.norm(dim=-1), torch.ones(3))
    assert not torch.allclose(pooled[1], ours.embed(ids, torch.ones_like(mask)).detach()[1])  # padding does not count
