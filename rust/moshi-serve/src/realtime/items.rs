//! The items of a conversation, in the order that its client knows.
//!
//! The model reads none of them: they are kept to be told back, so few and small ones are enough.

use serde_json::{Value, json};

/// Items that can be asked for; older ones are forgotten.
const MAX_ITEMS: usize = 256;
/// Bytes of JSON that all items may take.
const MAX_BYTES: usize = 1 << 20;

/// The items.
#[derive(Debug, Default)]
pub(super) struct Items {
    list: Vec<(Value, usize)>,
}

impl Items {
    /// Takes an item at the end, or behind the one that `after` names: `"root"` is the beginning,
    /// an item that is not known here any more is none. Gives the identifier of the item before.
    pub(super) fn insert(&mut self, item: Value, after: &Value) -> Value {
        let at = match after.as_str() {
            Some("root") => 0,
            _ => self.find(after).map_or(self.list.len(), |at| at + 1),
        };
        let before = self.before(at);
        self.list.insert(at, bounded(item));
        self.forget();
        before
    }

    /// Puts an item in the place of the one of the same identifier, which may be gone. Gives the
    /// identifier of the item before.
    pub(super) fn replace(&mut self, item: Value) -> Value {
        let Some(at) = self.find(&item["id"]) else { return Value::Null };
        self.list[at] = bounded(item);
        let before = self.before(at);
        self.forget();
        before
    }

    pub(super) fn get(&self, id: &Value) -> Option<&Value> {
        self.find(id).map(|at| &self.list[at].0)
    }

    /// False when there is no such item.
    pub(super) fn remove(&mut self, id: &Value) -> bool {
        self.find(id).map(|at| self.list.remove(at)).is_some()
    }

    /// Identifier of the last item, null before the first.
    pub(super) fn last(&self) -> Value {
        self.before(self.list.len())
    }

    fn find(&self, id: &Value) -> Option<usize> {
        self.list.iter().position(|(item, _)| item["id"].is_string() && item["id"] == *id)
    }

    fn before(&self, at: usize) -> Value {
        at.checked_sub(1).map_or(Value::Null, |at| self.list[at].0["id"].clone())
    }

    /// The first go when there are too many.
    fn forget(&mut self) {
        let mut bytes: usize = self.list.iter().map(|(_, bytes)| bytes).sum();
        let mut excess = self.list.len().saturating_sub(MAX_ITEMS);
        for (number, (_, size)) in self.list.iter().enumerate() {
            if bytes <= MAX_BYTES {
                break;
            }
            bytes -= size;
            excess = excess.max(number + 1);
        }
        self.list.drain(..excess);
    }
}

/// An item and its size. One that is too large for itself is kept without what it says.
fn bounded(item: Value) -> (Value, usize) {
    let bytes = item.to_string().len();
    if bytes <= MAX_BYTES {
        return (item, bytes);
    }
    let empty = json!({
        "id": item["id"],
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [],
    });
    let bytes = empty.to_string().len();
    (empty, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, text: &str) -> Value {
        json!({ "id": id, "content": [{ "text": text }] })
    }

    fn order(items: &Items) -> Vec<&str> {
        items.list.iter().map(|(item, _)| item["id"].as_str().unwrap()).collect()
    }

    #[test]
    fn items_stand_where_they_are_put() {
        let mut items = Items::default();
        assert_eq!(items.last(), Value::Null);
        for (id, after, before) in [
            ("b", json!(null), json!(null)),
            ("a", json!("root"), json!(null)),
            ("d", json!("gone"), json!("b")),
            ("c", json!("b"), json!("b")),
        ] {
            assert_eq!(items.insert(item(id, ""), &after), before, "{id}");
        }
        assert_eq!((order(&items), items.last()), (vec!["a", "b", "c", "d"], "d".into()));
        assert_eq!(items.replace(item("c", "new")), "b");
        assert_eq!(items.get(&"c".into()).unwrap()["content"][0]["text"], "new");
        assert!(items.remove(&"c".into()) && !items.remove(&"c".into()));
        assert_eq!(items.replace(item("c", "")), Value::Null, "what is gone stays gone");
        assert_eq!(order(&items), ["a", "b", "d"]);
        assert!(items.get(&Value::Null).is_none());
    }

    #[test]
    fn the_first_items_give_way() {
        let mut items = Items::default();
        for number in 0..MAX_ITEMS + 3 {
            items.insert(item(&number.to_string(), ""), &Value::Null);
        }
        assert_eq!((items.list.len(), order(&items)[0]), (MAX_ITEMS, "3"));
        items.insert(item("half", &"x".repeat(MAX_BYTES / 2)), &Value::Null);
        items.insert(item("most", &"x".repeat(MAX_BYTES - 1000)), &Value::Null);
        assert_eq!(order(&items), ["most"]);
        items.insert(item("huge", &"x".repeat(MAX_BYTES)), &Value::Null);
        assert_eq!(order(&items), ["most", "huge"]);
        assert_eq!(items.get(&"huge".into()).unwrap()["content"], json!([]));
    }
}
