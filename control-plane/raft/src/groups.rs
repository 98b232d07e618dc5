//! A queue whose items are taken in groups.

use tokio::sync::mpsc;

/// Whatever has queued is taken together, as far as it fits; what does not fit begins the next group.
#[derive(Debug)]
pub(crate) struct Groups<T> {
    queue: mpsc::Receiver<T>,
    carried: Option<T>,
}

impl<T> Groups<T> {
    pub fn of(queue: mpsc::Receiver<T>) -> Self {
        Self { queue, carried: None }
    }

    /// Waits for the first of a group; none once every sender is gone and all is taken. Cancel safe.
    pub async fn first(&mut self) -> Option<T> {
        match self.carried.take() {
            Some(first) => Some(first),
            None => self.queue.recv().await,
        }
    }

    /// The next of it, if there is one by now and it fits.
    pub fn next_if(&mut self, fits: impl FnOnce(&T) -> bool) -> Option<T> {
        let next = self.queue.try_recv().ok()?;
        if fits(&next) {
            return Some(next);
        }
        self.carried = Some(next);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_does_not_fit_begins_the_next_group_and_nothing_is_lost() {
        let (sender, queue) = mpsc::channel(8);
        for number in [1, 2, 9, 3] {
            sender.send(number).await.unwrap();
        }
        drop(sender);
        let mut groups = Groups::of(queue);
        assert_eq!(groups.first().await, Some(1));
        assert_eq!(groups.next_if(|next| *next < 5), Some(2));
        assert_eq!(groups.next_if(|next| *next < 5), None);
        assert_eq!(groups.first().await, Some(9));
        assert_eq!(groups.next_if(|next| *next < 5), Some(3));
        assert_eq!(groups.first().await, None);
    }
}
