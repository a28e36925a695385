"""Cells as the public notebooks of JumpStart have them, against whatever AWS_ENDPOINT_URL names. Prints what came."""
# ruff: noqa: E402

import json
import sys

import sagemaker.session

# A notebook's machine knows its role by this file; sys.argv[1] is one.
sagemaker.session.NOTEBOOK_METADATA_FILE = sys.argv[1]
came: dict[str, object] = {}

# %% Text to image: https://github.com/aws/amazon-sagemaker-examples, sm-jumpstart_stable_diffusion_text_to_image
import numpy as np
from sagemaker.jumpstart.notebook_utils import list_jumpstart_models

came["txt2img"] = list_jumpstart_models(filter="task == txt2img")
came["texts"] = list_jumpstart_models(filter="search_keywords includes Text Generation")

# %%
from sagemaker.jumpstart.model import JumpStartModel

model = JumpStartModel(model_id="model-txt2img-stabilityai-stable-diffusion-v2-1-base", model_version="1.*")
predictor = model.deploy()

# %%
payload = {"prompt": "a dog in a suit", "num_images_per_prompt": 2, "num_inference_steps": 3, "seed": 1}
response = predictor.predict(payload)
came["pixels"] = np.array(response["generated_images"][0], dtype=np.uint8).shape
came["pictures"] = len(response["generated_images"])
came["prompt"] = response["prompt"]

# %%
from sagemaker.serializers import IdentitySerializer, JSONSerializer

came["jpeg"] = predictor.predict(payload, {"Accept": "application/json;jpeg"})["generated_images"][0][:4]
predictor.serializer = IdentitySerializer()
came["text alone"] = sorted(predictor.predict("a dog in a suit", {"ContentType": "application/x-text"}))
predictor.serializer = JSONSerializer()

# %%
for example in model.retrieve_all_examples():
    came["example"] = list(predictor.predict(example.body))

# %%
predictor.delete_predictor()
try:
    predictor.sagemaker_session.sagemaker_client.describe_endpoint(EndpointName=predictor.endpoint_name)
except predictor.sagemaker_session.sagemaker_client.exceptions.ClientError as error:
    came["deleted"] = str(error)

# %% Text: our own id, an endpoint's name of one's own, a stream
model = JumpStartModel(model_id=sys.argv[2])
predictor = model.deploy(endpoint_name="my-text", initial_instance_count=1, instance_type="ml.g5.2xlarge")
payload = {"inputs": "the thing", "parameters": {"max_new_tokens": 8, "return_full_text": False}}
came["generated"] = predictor.predict(payload)
came["stream"] = b"".join(predictor.predict_stream(payload | {"stream": True})).decode()
predictor.delete_model()
predictor.delete_endpoint()

print(f"\n{json.dumps(came)}")  # behind the dashes of `deploy`
