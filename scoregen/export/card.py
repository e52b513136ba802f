"""The model card of an exported model: what it is, how to run it, what it was trained on, how it scored."""

from typing import Any

USAGE = """\
```python
from diffusers import DiffusionPipeline

path = "{path}"
pipeline = DiffusionPipeline.from_pretrained(path, custom_pipeline=path, trust_remote_code=True)
images = pipeline(seeds=range(4)){labels}.images
```

The folder carries the source of the network and its sampler; scoregen itself is not needed."""


def model_card(
    *,
    name: str,
    path: str,
    license_name: str,
    facts: dict[str, Any],
    config: str,
    metrics: list[dict[str, Any]],
    conditional: bool,
) -> str:
    """The text of README.md, with the metadata that model hubs read.

    Args:
        name: of the model. path: the folder, or the repository on a hub.
        license_name: of the weights, as hubs write it: apache-2.0, cc-by-4.0, other.
        facts: what to tell in a table.
        config: the run's configuration as YAML.
        metrics: the records of the run's metrics.json.
        conditional: whether it takes class labels.
    """
    usage = USAGE.format(path=path, labels="  # and class_labels=" if conditional else "")
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"""---
license: {license_name}
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [diffusion, score-model, scoregen]
---

# {name}

A denoiser D(x, sigma) = E[x0 | x0 + sigma n = x] with the sampler that it is meant for.

{usage}

| | |
|---|---|
{table}

## Metrics

{_metrics(metrics)}

## Training configuration

```yaml
{config.strip()}
```
"""


def _metrics(records: list[dict[str, Any]]) -> str:
    if not records:
        return "None were measured."
    head = "| metric | value | images | sampler, evaluations | extractor | reference |"
    rows = [
        f"| {r['name']} | {r['value']:.4g} | {r['n']:,} | {_sampler(r)} | {r['extractor']} "
        f"{r['extractor_sha256'][:12]} | {r['reference_sha256'][:12]} |"
        for r in records
    ]
    return "\n".join([head, "|---|--:|--:|---|---|---|", *rows])


def _sampler(record: dict[str, Any]) -> str:
    return f"{record['sampler']['class']}, {record['nfe']}"
