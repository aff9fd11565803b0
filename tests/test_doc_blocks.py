"""The blocks of a page: what tests of the documentation are told of it."""

import pytest
from doc_blocks import blocks_of

PAGE = """# Title

```bash
tdpo one \\
    --more "a b"
# a comment

tdpo two
```

## Part ##

<!-- not run: it takes an account -->
```bash
twine upload
```

<!-- a note -->

```python
# src/a_b/c.py
x = 1
```

* in a list:

  ~~~text
  indented
    more
  ```
  ~~~

````markdown
```bash
not a block of its own
```
````
"""


def page(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text)
    return path


def test_blocks_have_their_language_heading_line_and_text(tmp_path):
    blocks = blocks_of(page(tmp_path, PAGE))
    assert [(b.language, b.heading, b.line) for b in blocks] == [
        ("bash", "Title", 3),
        ("bash", "Part", 14),
        ("python", "Part", 20),
        ("text", "Part", 27),
        ("markdown", "Part", 33),
    ]
    assert blocks[3].text == "indented\n  more\n```\n"
    assert blocks[4].text == "```bash\nnot a block of its own\n```\n"


def test_commands_are_joined_and_without_comments(tmp_path):
    first = blocks_of(page(tmp_path, PAGE))[0]
    assert first.commands == ['tdpo one --more "a b"', "tdpo two"]
    assert first.file is None


def test_a_comment_right_above_belongs_to_its_block_alone(tmp_path):
    blocks = blocks_of(page(tmp_path, PAGE))
    assert [b.not_run for b in blocks] == [None, "it takes an account", None, None, None]
    assert [b.note for b in blocks[2:]] == ["", "", ""]
    assert blocks[2].file == "src/a_b/c.py"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n\n```bash\ntdpo", "page.md:3: the fence is never closed"),
        ("<!-- not run -->\n```bash\ntdpo\n```\n", "page.md:2: say why it is not run"),
        ("<!-- not run: -->\n```bash\ntdpo\n```\n", "page.md:2: say why it is not run"),
    ],
)
def test_a_page_that_hides_something_is_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        blocks_of(page(tmp_path, text))
