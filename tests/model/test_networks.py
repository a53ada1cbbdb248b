import pytest
import torch

from igd.model import networks


def millions(net):
    return sum(p.numel() for p in net.parameters()) / 1e6


def test_parameter_counts_are_the_papers():
    with torch.device("meta"):
        encoder = networks.local_encoder(64, 128)
        counts = {
            # The paper's table leaves the linear layer (0.066 M) out.
            "local encoder": millions(encoder) - millions(encoder.linear),
            "local decoder": millions(networks.local_decoder(64, 128)),
            "local critic": millions(networks.local_critic(64)),
            "global decoder": millions(networks.global_decoder(64, 128)),
            "global critic": millions(networks.global_critic(64)),
        }
    assert counts == pytest.approx({"local encoder": 6.69, "local decoder": 3.56,
                                    "local critic": 2.96, "global decoder": 10.90,
                                    "global critic": 17.7}, rel=0.01)


@pytest.mark.parametrize(("scale", "side"), [("local", 32), ("global", 256)])
def test_shapes_at_a_narrow_width(scale, side):
    x = torch.zeros(2, 3, side, side)
    encoder = getattr(networks, f"{scale}_encoder")(2, 7)
    z = encoder(x)
    assert z.shape == (2, 7)
    assert encoder.features(x).shape == (2, networks.FEATURES)
    assert getattr(networks, f"{scale}_decoder")(2, 7)(z).shape == x.shape
    d = getattr(networks, f"{scale}_critic")(2)(x)
    assert d.shape == (2,)
    assert ((d > 0) & (d < 1)).all()
