"""The template of a network configuration: what containerd's documentation shows, and what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.network import template

FIELDS = {
    "PodCIDR": "10.0.0.0/24",
    "PodCIDRRanges": ["10.0.0.0/24", "fd00::/64"],
    "Routes": ["0.0.0.0/0", "::/0"],
}
BOTH_FAMILIES = """\
"ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
"routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]
"""


def render(text: str) -> str:
    return template.render(text, FIELDS)


def test_both_families_as_documented() -> None:
    assert json.loads(f"{{{render(BOTH_FAMILIES)}}}") == {
        "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("{}} }", "{}} }"),
        ("a {{.PodCIDR}} b", "a 10.0.0.0/24 b"),
        ("{{ .PodCIDR }}{{$.PodCIDR}}", "10.0.0.0/2410.0.0.0/24"),
        ("{{/* a\ncomment */}}x", "x"),
        ("a \n {{- /* comment */ -}} \n b", "ab"),
        ("a\n{{- .PodCIDR }} b", "a10.0.0.0/24 b"),
        ("a {{ .PodCIDR -}} \n\tb", "a 10.0.0.0/24b"),
        ("{{range .Routes}}<{{.}}>{{end}}", "<0.0.0.0/0><::/0>"),
        ("{{range $r := .Routes}}{{$r}}={{.}};{{end}}", "0.0.0.0/0=0.0.0.0/0;::/0=::/0;"),
        ("{{range $i,$r := .Routes}}{{$i}}{{end}}", "01"),
        ("{{range $i, $r := .Routes}}{{if $i}}b{{else}}a{{end}}{{end}}", "ab"),
        ("{{range $i, $r := .Routes}}{{range $j, $s := $.Routes}}{{$i}}{{$j}} {{end}}{{end}}", "00 01 10 11 "),
        ("{{if .Routes}}some{{else}}none{{end}}", "some"),
        ("{{if .PodCIDR}}{{if $.Routes}}x{{end}}{{end}}", "x"),
    ],
)
def test_actions(text: str, expected: str) -> None:
    assert render(text) == expected


def test_nothing_to_range_over() -> None:
    fields: dict[str, list[str]] = {"Routes": []}
    assert template.render("{{range .Routes}}x{{else}}none{{end}}{{if .Routes}}y{{end}}", fields) == "none"


REFUSED = [
    ("{{.Gateway}}", "line 1: {{.Gateway}}: there is no .Gateway; there are .PodCIDR, .PodCIDRRanges, .Routes"),
    ("\n\n{{ .PodCIDR | printf }}", "line 3: {{.PodCIDR | printf}}: it is not understood here"),
    ('{{template "x"}}', "not understood"),
    ("{{len .Routes}}", "not understood"),
    ("{{if eq $i 1}}x{{end}}", "not understood"),
    ("{{if .PodCIDR}}a{{else if .Routes}}b{{end}}", "{{else if .Routes}}: it is not understood"),
    ("{{with .PodCIDR}}{{.}}{{end}}", "not understood"),
    ("{{}}", "not understood"),
    ("{{.}}", "'.' is something only inside of range"),
    ("{{$i}}", "there is no variable $i here"),
    ("{{range $i, $r := .Routes}}{{end}}{{$i}}", "there is no variable $i here"),
    ("{{.Routes}}", "a list can't be printed"),
    ("{{range .PodCIDR}}{{end}}", "range needs a list"),
    ("{{range .Routes}}{{.PodCIDR}}{{end}}", "use $.PodCIDR"),
    ("{{range .Routes[0]}}{{end}}", ".Routes[0] is not understood here"),
    ("a\n{{range .Routes}}\n", "line 2: {{range .Routes}}: it has no end"),
    ("{{if .PodCIDR}}{{else}}{{else}}{{end}}", "{{else}}: it is not understood"),
    ("{{end}}", "{{end}}: it is not understood"),
    ("{{else}}", "{{else}}: it is not understood"),
    ("a\n{{.PodCIDR", "line 2: an action has no }}"),
    ("{{.PodCIDR\n{{.PodCIDR}}", "not understood"),
    ("{{range .Routes}}" * 9 + "{{end}}" * 9, "nested deeper than 8"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[text[:40] for text, _ in REFUSED])
def test_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="line") as refusal:
        render(text)
    assert words in str(refusal.value)


@given(st.text(st.sampled_from("ab{}.$ -/*\n") | st.characters()))
def test_whatever_it_is(text: str) -> None:
    """It is made, or refused as a ValueError; text without actions is what it was."""
    try:
        made = render(text)
    except ValueError:
        return
    if "{{" not in text:
        assert made == text
