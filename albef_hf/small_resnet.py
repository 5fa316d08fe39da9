"""The ResNet for pictures of 32 x 32 pixels: a 3 x 3 stem of stride 1 without pooling (He et al. 2016, section 4.2).

The rest is transformers' ResNet. `vision_config: {model_type: small_resnet, ...}` takes the fields of `ResNetConfig`.
"""

from torch import nn
from transformers import AutoConfig, AutoModel, ResNetConfig, ResNetModel
from transformers.models.resnet.modeling_resnet import ResNetConvLayer


class SmallResNetConfig(ResNetConfig):
    model_type = "small_resnet"


class SmallResNetModel(ResNetModel):
    config_class = SmallResNetConfig

    def __init__(self, config: SmallResNetConfig) -> None:
        super().__init__(config)
        stem = ResNetConvLayer(
            config.num_channels, config.embedding_size, kernel_size=3, stride=1, activation=config.hidden_act
        )
        self.embedder.embedder = stem
        self.embedder.pooler = nn.Identity()  # type: ignore[assignment]
        self.post_init()


AutoConfig.register("small_resnet", SmallResNetConfig, exist_ok=True)
AutoModel.register(SmallResNetConfig, SmallResNetModel, exist_ok=True)
