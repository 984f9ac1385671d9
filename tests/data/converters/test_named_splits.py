from nucsam_monai.data.converters import kumar
from nucsam_monai.data.converters.named_splits import divides_groups, named_protocols


def test_groups_in_several_splits_are_found() -> None:
    groups = {"a": "1", "b": "1", "c": "2"}
    assert not divides_groups({"training": ["a", "b"], "test": ["c", "d"]}, groups)
    assert divides_groups({"training": ["a"], "validation": ["b"], "test": ["c"]}, groups)
    assert not divides_groups({"training": ["a"], "test": ["b"]}, {})


def test_only_the_first_protocol_may_be_without_test_images() -> None:
    splits = {"kumar_16_8_6": {"training": ["a"]}, "kumar_test1": {"training": ["a"], "test": []}}
    assert list(named_protocols(kumar.INFO, splits)) == ["kumar_16_8_6"]
    splits["kumar_test1"]["test"] = ["b"]
    protocols = named_protocols(kumar.INFO, splits, {"a": "1", "b": "1"})
    assert protocols["kumar_test1"].divides_groups
    assert protocols["kumar_test1"].description == kumar.INFO.protocols["kumar_test1"]
