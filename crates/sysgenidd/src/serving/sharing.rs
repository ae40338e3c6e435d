// SPDX-License-Identifier: MIT OR Apache-2.0

//! How the page gets to those who map a node.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::keeping::page::Page;
use crate::keeping::state::{Mapping, State};
use crate::protocol::wire::fopen;
use crate::protocol::{BackingId, Connection};

use super::copies::Copies;

/// How the page gets to those who map a node.
pub(super) trait Sharing: fmt::Debug + Send {
    /// What OPEN answers of it: flags, and the backing file.
    fn open_flags(&self) -> (u32, i32);

    /// Whether the kernel asks for the page by READ, to keep a copy.
    fn is_copied(&self) -> bool;

    /// A change has been stored in the page. Sees to it that all who map it see it, which may take until
    /// [`is_under_way`](Self::is_under_way) says so no longer.
    fn renew(&mut self, connection: &Arc<Connection>);

    /// Whether somebody who maps the page may not see what is stored in it yet.
    fn is_under_way(&self) -> bool {
        false
    }

    /// Becomes readable when [`advance`](Self::advance) has something to do.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Goes on with what is under way.
    fn advance(&mut self, _connection: &Arc<Connection>) {}
}

/// Mappings go to the page itself, by the kernel's passthrough.
#[derive(Debug)]
struct Direct(BackingId);

impl Sharing for Direct {
    fn open_flags(&self) -> (u32, i32) {
        (fopen::PASSTHROUGH, self.0.get())
    }

    fn is_copied(&self) -> bool {
        false
    }

    fn renew(&mut self, _connection: &Arc<Connection>) {}
}

/// What kernel and daemon have agreed on, or agree on now.
pub(super) fn settle(
    name: &str,
    wanted: bool,
    connection: &Connection,
    state: &State,
    page: &Page,
) -> anyhow::Result<Box<dyn Sharing>> {
    let mapping = match state.mapping() {
        Mapping::Unsettled if wanted => match connection.open_backing(page.as_fd()) {
            Ok(id) => Mapping::Passthrough(id),
            Err(errno) => {
                tracing::warn!(
                    instance = name,
                    "the kernel cannot pass mappings through ({errno}); it keeps a copy of the page, which \
                     is renewed at each change"
                );
                Mapping::Store
            }
        },
        Mapping::Unsettled => Mapping::Store,
        settled => settled,
    };
    state.set_mapping(mapping);
    Ok(match mapping {
        Mapping::Passthrough(id) => Box::new(Direct(id)),
        Mapping::Store | Mapping::Unsettled => Box::new(Copies::of(page)?),
    })
}
