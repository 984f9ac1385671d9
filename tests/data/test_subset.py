import pytest

from nucsam_monai.data.subset import first_of_each_domain
from nucsam_monai.utils.errors import ConfigurationError

ITEMS = [{"domain": domain, "id": str(number)} for number, domain in enumerate("abacba")]


@pytest.mark.parametrize(("count", "expected"), [(1, "013"), (2, "01234"), (9, "012345"), (None, "012345")])
def test_the_first_of_each_domain_in_their_order(count, expected):
    assert "".join(item["id"] for item in first_of_each_domain(ITEMS, count)) == expected


def test_no_image_is_refused():
    with pytest.raises(ConfigurationError, match="0 images of each domain: expected 1 or more"):
        first_of_each_domain(ITEMS, 0)
