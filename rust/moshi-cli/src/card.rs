//! The front matter of a model card: YAML between two lines `---` at the top of a README.

use std::collections::BTreeMap;

use moshi_core::checkpoint::SourceFile;
use saphyr_parser::{Event, Parser};

use crate::output::Result;

/// More than any card's front matter.
const MAX_CARD_BYTES: usize = 256 << 10;
const FENCE: &str = "---";

/// Keys at the top level of a card whose values are texts or lists of texts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Card(BTreeMap<String, Vec<String>>);

/// What a card says to people: all that follows its front matter.
pub(crate) fn body(file: &SourceFile) -> Result<String> {
    let text = read(file)?;
    let after = text
        .strip_prefix(FENCE)
        .and_then(|rest| rest.split_once("\n---"))
        .and_then(|(_, rest)| rest.split_once('\n'));
    Ok(after.map_or(&*text, |(_, body)| body).trim_start().into())
}

fn read(file: &SourceFile) -> Result<String> {
    let bytes = file.bytes()?;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_CARD_BYTES)]);
    Ok(text.trim_start_matches('\u{feff}').replace("\r\n", "\n"))
}

impl Card {
    pub(crate) fn read(file: &SourceFile) -> Result<Self> {
        Ok(Self::parse(&read(file)?))
    }

    /// What can be understood: a card is for people, and states as much as it states.
    fn parse(text: &str) -> Self {
        let Some(rest) = text.strip_prefix(FENCE).and_then(|rest| rest.strip_prefix('\n')) else {
            return Self::default();
        };
        let end = rest.find("\n---").map_or(0, |at| at + 1);
        let mut found = BTreeMap::new();
        let (mut depth, mut key) = (0, None);
        // Events, not a tree: aliases stay what they are and cannot multiply.
        for event in Parser::new_from_str(&rest[..end]) {
            let Ok((event, _)) = event else { break };
            match (event, depth) {
                (Event::Scalar(text, ..), 1) => match key.take() {
                    None => key = Some(text.into_owned()),
                    Some(key) => {
                        found.insert(key, vec![text.into_owned()]);
                    }
                },
                (Event::Scalar(text, ..), 2) => {
                    if let Some(key) = &key {
                        found.entry(key.clone()).or_insert_with(Vec::new).push(text.into_owned());
                    }
                }
                (Event::MappingStart(..), 1) => {
                    // Its own keys are not the card's.
                    key = None;
                    depth = 2;
                }
                (Event::SequenceStart(..) | Event::MappingStart(..), _) => depth += 1,
                (Event::SequenceEnd | Event::MappingEnd, _) => {
                    depth -= 1;
                    if depth == 1 {
                        key = None;
                    }
                }
                (Event::Alias(_), 1) => key = None,
                _ => {}
            }
        }
        Self(found)
    }

    /// A value as one text; `None` when the card does not state it.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        let values = self.0.get(key)?;
        Some(values.join(", ")).filter(|text| !text.is_empty() && text != "~" && text != "null")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_lists_are_read() {
        let card = Card::parse(
            "---\nlicense: cc-by-4.0 # a comment\nlicense_name: \"own: name\"\nbase_model:\n\
             - kyutai/moshiko\n- 'b/c'\nlanguage: [en, fr]\nmodel-index:\n- name: x\n  license: mit\n\
             widget:\n  license_link: no\nempty:\nlast: >\n  two\n  lines\n---\n# license_link: y\n",
        );
        let text = |key: &str| card.text(key);
        assert_eq!(text("license").as_deref(), Some("cc-by-4.0"));
        assert_eq!(text("license_name").as_deref(), Some("own: name"));
        assert_eq!(text("base_model").as_deref(), Some("kyutai/moshiko, b/c"));
        assert_eq!(text("language").as_deref(), Some("en, fr"));
        assert_eq!(text("last").as_deref().map(str::trim), Some("two lines"));
        assert_eq!((text("license_link"), text("empty"), text("nothing")), (None, None, None));
    }

    #[test]
    fn what_is_no_card_states_nothing() {
        for text in
            ["", "# Title\nlicense: mit\n", "---\nlicense: mit\n", "--- \nlicense: mit\n---\n"]
        {
            assert_eq!(Card::parse(text), Card::default(), "{text:?}");
        }
    }

    #[test]
    fn hostile_cards_end() {
        let bomb = "a: &a [x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nlicense: mit";
        assert_eq!(
            Card::parse(&format!("---\n{bomb}\n---\n")).text("license").as_deref(),
            Some("mit")
        );
        let deep = format!("---\nlicense: mit\na: {}\n---\n", "[".repeat(100_000));
        assert_eq!(Card::parse(&deep).text("license").as_deref(), Some("mit"));
        let odd = "---\nlicense: mit\n? {a: b}\n: [c\n---\n";
        assert_eq!(Card::parse(odd).text("license").as_deref(), Some("mit"));
        Card::parse("---\n- a\n- b\n---\n");
        Card::parse("---\n\t: : :\n}\n---\n");
    }
}
