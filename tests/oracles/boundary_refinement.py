"""BGMR from its equations: everything that images share is repeated for their prompts and concatenated."""

import torch
from torch.nn import functional as F
from torchvision.ops import deform_conv2d


def refine(network, embedding, image, upscaled, owners):
    """Logits and boundary logits of a BoundaryRefinement with all parts."""

    def twice(maps):
        return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)

    semantic = embedding
    for conv in network.semantic:
        semantic = conv(twice(semantic))
    features = unit(network.join, torch.cat([semantic[owners], upscaled], dim=1))
    for conv in network.upscale:
        features = conv(twice(features))
    edges = evidence(network.evidence, image)[owners]
    fused = fuse(network.fusion, edges, features)
    weighted = network.reduce(torch.sigmoid(fused) * features)
    refined = features + network.expand(deform(network.deformable, weighted))
    return network.mask(refined), network.boundary(fused)


def evidence(network, image):
    stem = network.stem(image)
    maps = [torch.sigmoid(network.scales[0](stem))]
    for scale in network.scales[1:]:
        maps.append(torch.sigmoid(scale(F.avg_pool2d(maps[-1], 3, 1, 1))))
    contrasted = maps[:1]
    for edge, found in zip(network.edges, maps[1:], strict=True):
        contrasted.append(found + torch.sigmoid(edge(found - F.avg_pool2d(found, 3, 1, 1))))
    return stem + network.merge(torch.cat(contrasted, dim=1))


def fuse(network, edges, features):
    first, second = features.chunk(2, dim=1)
    plain = unit(network.plain, torch.cat([edges, first], dim=1))
    moved = F.relu(network.deformable_norm(deform(network.deformable, torch.cat([edges, second], dim=1))))
    attended = [attend(network.plain_attention, plain), attend(network.deformable_attention, moved)]
    return network.merge(torch.cat(attended, dim=1))


def unit(layer, maps):
    return F.relu(layer.norm(layer.conv(maps)))


def attend(attention, maps):
    pooled = torch.cat([maps.mean(1, keepdim=True), maps.max(1, keepdim=True).values], dim=1)
    if attention.order == "released":
        return maps * attention.conv(pooled.sigmoid()) + maps
    return maps * attention.conv(pooled).sigmoid() + maps


def deform(layer, maps):
    prediction = layer.predict(maps)
    # (9 * outputs, inputs, 1, 1) -> (outputs, inputs, 3, 3)
    weight = layer.taps.weight.view(3, 3, -1, maps.shape[1]).permute(2, 3, 0, 1)
    return deform_conv2d(maps, prediction[:, :18], weight, padding=1, mask=prediction[:, 18:].sigmoid())
