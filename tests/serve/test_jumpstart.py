"""SageMaker's control calls and JumpStart's objects, by boto3; the SDK itself runs in tests/clients/."""

import functools
import json

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from qkv.errors import NotFoundError
from qkv.serve.jumpstart import MAX_OBJECTS, NOTEBOOKS, Objects

ALIAS = "model-txt2img-stabilityai-stable-diffusion-v2-1-base"


@functools.cache  # making them costs more than asking them
def _clients(address: str):
    config = Config(region_name="us-east-1", retries={"max_attempts": 0})
    keys = {"aws_access_key_id": "anybody", "aws_secret_access_key": "x"}
    services = ("sagemaker", "sagemaker-runtime", "s3")
    return {name: boto3.client(name, endpoint_url=address, config=config, **keys) for name in services}


@pytest.fixture
def clients(live):
    return _clients(live.address)


def make(control, name: str, model: str | None) -> None:
    inside = {} if model is None else {"Environment": {"HF_MODEL_ID": model}}
    control.create_model(ModelName=name, PrimaryContainer={"Image": "qkv", **inside}, ExecutionRoleArn="arn:aws:" * 4)
    variant = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.m5.large"}
    control.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant | {"InitialInstanceCount": 1}])
    control.create_endpoint(EndpointName=name, EndpointConfigName=name)


def remove(control, name: str) -> None:
    control.delete_endpoint(EndpointName=name)
    control.delete_endpoint_config(EndpointConfigName=name)
    control.delete_model(ModelName=name)


def test_an_endpoint_is_made_asked_and_deleted(clients) -> None:
    control, runtime = clients["sagemaker"], clients["sagemaker-runtime"]
    make(control, "mine", "tiny")
    control.get_waiter("endpoint_in_service").wait(EndpointName="mine")
    assert control.describe_endpoint(EndpointName="mine")["EndpointConfigName"] == "mine"
    found = control.describe_endpoint_config(EndpointConfigName="mine")
    assert found["ProductionVariants"][0]["ModelName"] == "mine"
    assert control.describe_model(ModelName="mine")["PrimaryContainer"]["Environment"] == {"HF_MODEL_ID": "tiny"}
    assert [each["EndpointName"] for each in control.list_endpoints(NameContains="min")["Endpoints"]] == ["mine"]
    assert control.list_models(NameContains="other")["Models"] == []
    # An endpoint knows its model: a text alone is no payload for the default of texts.
    answer = runtime.invoke_endpoint(EndpointName="mine", Body=b"a dog", ContentType="application/x-text")
    assert set(json.loads(answer["Body"].read())) == {"generated_image", "prompt"}
    remove(control, "mine")
    with pytest.raises(ClientError, match="Could not find endpoint 'mine'"):
        control.describe_endpoint(EndpointName="mine")


def test_an_alias_is_named_in_every_answer(clients) -> None:
    control, runtime = clients["sagemaker"], clients["sagemaker-runtime"]
    make(control, "other", ALIAS)
    answer = json.loads(runtime.invoke_endpoint(EndpointName="other", Body=json.dumps(DRAWN))["Body"].read())
    assert answer["warnings"] == [f"alias: {ALIAS} is not here; tiny answers"]
    remove(control, "other")


DRAWN = {"prompt": "a dog", "num_inference_steps": 2, "seed": 1}


def test_what_cannot_be_made_is_said(clients) -> None:
    control = clients["sagemaker"]
    make(control, "once", None)
    for said, call, given in (
        ("Cannot create already existing model", control.create_model, {"ModelName": "once"}),
        ("Could not find model 'none'", control.delete_model, {"ModelName": "none"}),
        ("Could not find endpoint configuration", control.create_endpoint, {"EndpointName": "a"}),
        ("is not letters, digits and hyphens", control.create_model, {"ModelName": "../x"}),
    ):
        config = {"EndpointConfigName": "none"} if call == control.create_endpoint else {}
        with pytest.raises(ClientError, match=said) as refused:
            call(**given, **config)
        assert refused.value.response["Error"]["Code"] == "ValidationException"
    remove(control, "once")
    inside = {"Image": "x", "Environment": {"HF_MODEL_ID": "../../etc/passwd"}}
    with pytest.raises(ClientError, match="unknown model"):
        control.create_model(ModelName="bad", PrimaryContainer=inside)
    with pytest.raises(ClientError, match="is no call that this server answers"):
        control.list_training_jobs()


def test_the_manifest_and_the_specs(clients) -> None:
    store = clients["s3"]

    def read(key: str):
        return json.loads(store.get_object(Bucket="jumpstart-cache-prod-eu-west-1", Key=key)["Body"].read())

    rows = read("models_manifest.json")
    known = {row["model_id"] for row in rows}
    assert {"qkv-txt2img-tiny", "qkv-textgeneration-small", "qkv-textembedding-reader", *NOTEBOOKS} <= known
    for row in rows:
        spec = read(row["spec_key"])
        assert (spec["model_id"], spec["version"]) == (row["model_id"], row["version"])
        assert bool(spec.get("deprecate_warn_message")) == (row["model_id"] in NOTEBOOKS)
    with pytest.raises(store.exceptions.NoSuchKey):
        read("qkv/qkv-txt2img-tiny/9.0.0.json")


def test_every_example_is_answered(clients) -> None:
    """What JumpStart shows as a payload of a model is one, and its keys find the answer."""
    import jmespath

    store, runtime = clients["s3"], clients["sagemaker-runtime"]
    for id in ("qkv-txt2img-tiny", "qkv-textgeneration-small", "qkv-textembedding-reader"):
        key = f"qkv/{id}/1.0.0.json"
        spec = json.loads(store.get_object(Bucket="jumpstart-cache-prod-us-east-1", Key=key)["Body"].read())
        (example,) = spec["default_payloads"].values()
        answer = runtime.invoke_endpoint(
            EndpointName=id,
            Body=json.dumps(example["body"]),
            ContentType=example["content_type"],
            Accept=example["accept"],
        )
        found = json.loads(answer["Body"].read())
        for path in example["output_keys"].values():
            assert jmespath.search(path, found)


def test_objects_are_few() -> None:
    objects = Objects()
    for number in range(MAX_OBJECTS + 1):
        objects.put(f"s3://qkv-x/{number}", b"x", "")
    assert objects.at(f"s3://qkv-x/{MAX_OBJECTS}").data == b"x"
    with pytest.raises(NotFoundError):
        objects.at("s3://qkv-x/0")
