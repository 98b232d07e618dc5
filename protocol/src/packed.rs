//! Rows that every agent gets, packed once for all of them: thousands of nodes tell each other of thousands of nodes.

use prost::Message as _;

use crate::v1::{Feed, Item};

/// About how many bytes of items go into one pack.
pub const PACK_BYTES: usize = 256 << 10;
/// What a pack may unfold to: one with the largest object in it.
const UNPACKED_BYTES: usize = 4 << 20;

/// Items as a zstd frame of a `Feed` with nothing else in it.
///
/// # Errors
/// The compressor's words.
pub fn pack(items: Vec<Item>) -> std::io::Result<Vec<u8>> {
    zstd::bulk::compress(&Feed { items, ..Feed::default() }.encode_to_vec(), zstd::DEFAULT_COMPRESSION_LEVEL)
}

/// Puts the items that a feed has packed before its others.
///
/// # Errors
/// It is no pack of ours, or unfolds to too much, in words.
pub fn unpack(feed: &mut Feed) -> Result<(), String> {
    if feed.packed.is_empty() {
        return Ok(());
    }
    let packed = std::mem::take(&mut feed.packed);
    let bytes = zstd::bulk::decompress(&packed, UNPACKED_BYTES).map_err(|error| error.to_string())?;
    let mut items = Feed::decode(&*bytes).map_err(|error| error.to_string())?.items;
    items.append(&mut feed.items);
    feed.items = items;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(number: usize, bytes: usize) -> Item {
        Item { resource: "nodes".to_owned(), name: format!("n{number}"), object: vec![b'x'; bytes], ..Item::default() }
    }

    #[test]
    fn packed_items_come_before_the_others() {
        let packed = pack((0..100).map(|number| item(number, 500)).collect()).unwrap();
        assert!(packed.len() < 2000, "{}", packed.len());
        let mut feed = Feed { packed, items: vec![item(7, 1)], ..Feed::default() };
        unpack(&mut feed).unwrap();
        let names: Vec<&str> = feed.items.iter().map(|item| item.name.as_str()).collect();
        assert_eq!((names.len(), names[0], names[99], names[100]), (101, "n0", "n99", "n7"));
        unpack(&mut feed).unwrap();
        assert_eq!(feed.items.len(), 101, "nothing is packed any more");
    }

    #[test]
    fn what_is_no_pack_or_a_bomb_is_refused() {
        for bytes in [vec![1, 2, 3], pack(vec![item(0, UNPACKED_BYTES + 1)]).unwrap()] {
            assert!(unpack(&mut Feed { packed: bytes, ..Feed::default() }).is_err());
        }
        let whole = pack((0..1000).map(|number| item(number, 500)).collect()).unwrap();
        for end in 1..whole.len() {
            assert!(unpack(&mut Feed { packed: whole[..end].to_vec(), ..Feed::default() }).is_err());
        }
    }
}
