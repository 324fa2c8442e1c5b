//! A JSON object whose fields are taken one by one, with errors that name them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::rc::Rc;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Upper bound of any size in a config: far above every real model, far below overflow.
const MAX_SIZE: u64 = 1 << 24;
/// Upper bound of numbers of layers, codebooks and heads.
pub(super) const MAX_COUNT: usize = 512;
/// Upper bound of attention windows: rings of it still fit a machine's address space.
pub(super) const MAX_CONTEXT: usize = 1 << 16;
/// Characters of a value in a message.
const MAX_SHOWN: usize = 200;

/// A value for a message, cut where it becomes a page.
fn shortened(value: impl Display) -> String {
    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(MAX_SHOWN) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// One object of a config file; remembers which fields were asked for, of it or of its clones.
#[derive(Clone)]
pub struct Fields<'a> {
    file: &'a str,
    prefix: String,
    map: Map<String, Value>,
    asked: Rc<RefCell<BTreeSet<String>>>,
}

impl<'a> Fields<'a> {
    /// Wraps an object; `prefix` is put before field names in errors.
    ///
    /// # Errors
    /// [`Error::ConfigFile`] when the value is no object.
    pub fn new(file: &'a str, prefix: &str, value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => {
                Ok(Self { file, prefix: prefix.into(), map, asked: Rc::default() })
            }
            other => Err(Error::ConfigFile {
                file: file.into(),
                reason: format!("expected an object at `{prefix}`, got {}", shortened(other)),
            }),
        }
    }

    /// An [`Error::Config`] about `name`.
    pub fn error(&self, name: &str, value: impl Display, reason: impl Into<String>) -> Error {
        Error::Config {
            file: self.file.into(),
            field: format!("{}{name}", self.prefix),
            value: shortened(value),
            reason: reason.into(),
        }
    }

    /// True when the field is present and not null.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Names of all fields of the object, in the file's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// The raw value, `None` when absent or null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.asked.borrow_mut().insert(name.into());
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// A nested object, `None` when absent or null.
    pub fn object(&self, name: &str) -> Result<Option<Self>> {
        match self.get(name) {
            None => Ok(None),
            Some(value @ Value::Object(_)) => {
                let prefix = format!("{}{name}.", self.prefix);
                Self::new(self.file, &prefix, value.clone()).map(Some)
            }
            Some(other) => Err(self.error(name, other, "expected an object")),
        }
    }

    /// A whole number of at most 2^24, `None` when absent.
    pub fn size(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        self.as_size(name, value).map(Some)
    }

    /// A whole number, with a default.
    pub fn size_or(&self, name: &str, default: usize) -> Result<usize> {
        Ok(self.size(name)?.unwrap_or(default))
    }

    /// A whole number of at least 1.
    pub fn positive_or(&self, name: &str, default: usize) -> Result<usize> {
        match self.size_or(name, default)? {
            0 => Err(self.error(name, 0, "must be at least 1")),
            value => Ok(value),
        }
    }

    /// A whole number from 1 to `max`.
    pub fn count_or(&self, name: &str, default: usize, max: usize) -> Result<usize> {
        self.at_most(name, self.positive_or(name, default)?, max)
    }

    /// Refuses a value of a field above `max`.
    pub fn at_most(&self, name: &str, value: usize, max: usize) -> Result<usize> {
        if value <= max {
            return Ok(value);
        }
        Err(self.error(name, value, format!("must be at most {max}")))
    }

    /// A whole number of at least 1 that must be there.
    pub fn required(&self, name: &str) -> Result<usize> {
        if !self.has(name) {
            return Err(self.error(name, "absent", "is required"));
        }
        self.positive_or(name, 0)
    }

    /// A list of whole numbers.
    pub fn sizes(&self, name: &str) -> Result<Option<Vec<usize>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                items.iter().map(|item| self.as_size(name, item)).collect::<Result<_>>().map(Some)
            }
            Some(other) => Err(self.error(name, other, "expected a list of whole numbers")),
        }
    }

    /// A finite number, with a default.
    pub fn number_or(&self, name: &str, default: f64) -> Result<f64> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|v| v.is_finite())
                .ok_or_else(|| self.error(name, value, "expected a number")),
        }
    }

    /// A text, with a default.
    pub fn text_or(&self, name: &str, default: &str) -> Result<String> {
        match self.get(name) {
            None => Ok(default.into()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.error(name, other, "expected a text")),
        }
    }

    /// A list of texts, empty when absent.
    pub fn texts(&self, name: &str) -> Result<Vec<String>> {
        let wrong = |value: &Value| self.error(name, value, "expected a list of texts");
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| item.as_str().map(String::from).ok_or_else(|| wrong(item)))
                .collect(),
            Some(other) => Err(wrong(other)),
        }
    }

    /// A flag; a list counts as true when it is not empty, as one released config writes it.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::Array(items)) => Ok(!items.is_empty()),
            Some(other) => Err(self.error(name, other, "expected true or false")),
        }
    }

    /// Checks that a field, when present, has the one value that this engine implements.
    /// `absent` is what the original takes an absent field for.
    pub fn only(&self, name: &str, accepted: &[&str], absent: &str) -> Result<String> {
        let text = match self.get(name) {
            None => absent.to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        if accepted.contains(&text.as_str()) {
            return Ok(text);
        }
        let shown = self
            .get(name)
            .map_or_else(|| format!("absent (which means \"{absent}\")"), ToString::to_string);
        let list = accepted.iter().map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(" or ");
        Err(self.error(name, shown, format!("only {list} is used by released models")))
    }

    /// Checks that a flag, when present, has the one value that this engine implements.
    pub fn only_flag(&self, name: &str, accepted: bool, absent: bool) -> Result<()> {
        let flag = self.flag_or(name, absent)?;
        if flag == accepted {
            return Ok(());
        }
        Err(self.error(name, flag, format!("only {accepted} is used by released models")))
    }

    /// Checks that a number, when present, equals `accepted`.
    pub fn only_number(&self, name: &str, accepted: f64) -> Result<()> {
        let value = self.number_or(name, accepted)?;
        if (value - accepted).abs() < 1e-12 {
            return Ok(());
        }
        Err(self.error(name, value, format!("only {accepted} is used by released models")))
    }

    /// Checks that a field is absent or null.
    pub fn only_null(&self, name: &str) -> Result<()> {
        match self.get(name) {
            None => Ok(()),
            Some(value) => Err(self.error(name, value, "only null is used by released models")),
        }
    }

    /// Logs a warning for every field that nobody asked for, once.
    pub fn warn_about_unknown(&self) {
        for name in self.map.keys() {
            if self.asked.borrow_mut().insert(name.clone()) {
                // A name may hold sequences that a terminal obeys.
                let field = format!("{}{name}", self.prefix);
                log::warn!(
                    "config {}: unknown field `{}` ignored",
                    self.file,
                    field.escape_debug()
                );
            }
        }
    }

    fn as_size(&self, name: &str, value: &Value) -> Result<usize> {
        let whole = value
            .as_u64()
            .or_else(|| value.as_f64().filter(|v| v.fract() == 0.0 && *v >= 0.0).map(|v| v as u64));
        match whole {
            Some(size) if size <= MAX_SIZE => Ok(size as usize),
            Some(_) => Err(self.error(name, value, format!("must be at most {MAX_SIZE}"))),
            None => Err(self.error(name, value, "expected a whole number of at least 0")),
        }
    }
}
