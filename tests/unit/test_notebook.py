from xml.etree import ElementTree

from decayprune.notebook import table


def test_a_table_with_numbers_and_words_that_html_would_read() -> None:
    html = table(("layer", "width"), [("a<b>&", 12345), ("c", "7 %")], title="x < y", below="&")
    parts = ElementTree.fromstring(f"<div>{html}</div>")
    cells = [cell.text for cell in parts.iter() if cell.tag in ("th", "td")]
    assert cells == ["layer", "width", "a<b>&", "12,345", "c", "7 %"]
    assert [p.findtext("b") or p.text for p in parts.iter("p")] == ["x < y", "&"]
    assert "<p>" not in table(("a",), [], title="", below="").partition("</p>")[2]
