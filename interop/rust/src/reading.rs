//! What has arrived of one run, checked as it comes.

use tonic::{Code, Status, Streaming};

use crate::v1::stream_generate_response::Event;
use crate::v1::{FinishReason, GenerateRequest, Started, StreamGenerateResponse};
use crate::{Outcome, check};

/// One run, as far as it was read.
pub struct Reading {
    pub request: GenerateRequest,
    stream: Streaming<StreamGenerateResponse>,
    started: Option<Started>,
    next: u32,
    pub tokens: usize,
    text: String,
    finish: Option<FinishReason>,
    pub complete: bool,
}

impl Reading {
    /// Of a stream that was opened for a request.
    pub fn new(request: GenerateRequest, stream: Streaming<StreamGenerateResponse>) -> Reading {
        Reading {
            request,
            stream,
            started: None,
            next: 0,
            tokens: 0,
            text: String::new(),
            finish: None,
            complete: false,
        }
    }

    /// Reads until so many tokens have come.
    pub async fn until(&mut self, tokens: usize) -> Outcome {
        while self.tokens < tokens {
            let message = self.stream.message().await?.ok_or("the stream ended")?;
            self.take(message)?;
        }
        Ok(())
    }

    /// Reads to the end: the status it ended with, None for OK.
    pub async fn to_the_end(&mut self) -> Outcome<Option<Status>> {
        loop {
            match self.stream.message().await {
                Ok(Some(message)) => self.take(message)?,
                Ok(None) => return Ok(None),
                Err(status) => return Ok(Some(status)),
            }
        }
    }

    /// Reads to an end with this code.
    pub async fn ends_with(&mut self, code: Code) -> Outcome {
        let ended = self.to_the_end().await?;
        check(ended.as_ref().map(Status::code) == Some(code), || format!("it ended with {ended:?}, not {code:?}"))
    }

    fn take(&mut self, message: StreamGenerateResponse) -> Outcome {
        let event = message.event.ok_or("a message without an event")?;
        if matches!(event, Event::Progress(_)) {
            return Ok(());
        }
        check(!self.complete, || "a message after Completed".into())?;
        check(message.position == self.next, || format!("position {}, not {}", message.position, self.next))?;
        check(self.started.is_some() != matches!(event, Event::Started(_)), || {
            "Started is not the first message, or comes again".into()
        })?;
        let mut span = 1;
        match event {
            Event::Started(started) => self.started = Some(started),
            Event::Delta(delta) => {
                check(self.finish.is_none(), || "tokens after SequenceDone".into())?;
                let tokens = delta.tokens.map_or(0, |batch| batch.tokens.len());
                span = span.max(tokens as u32);
                self.tokens += tokens;
                self.text += &delta.text;
            }
            Event::SequenceDone(done) => self.finish = done.finish.map(|finish| finish.reason()),
            Event::Completed(completed) => {
                check(completed.entries == message.position + 1, || {
                    format!("entries {} at position {}", completed.entries, message.position)
                })?;
                self.complete = true;
            }
            Event::Progress(_) => {}
        }
        self.next += span;
        Ok(())
    }

    /// Checks a run that has ended well.
    pub fn is_whole(&self, tokens: usize, text: &str) -> Outcome {
        let started = self.started.as_ref().ok_or("no Started")?;
        check(!started.epoch.is_empty(), || "no epoch".into())?;
        check(started.request_id == self.request.request_id, || format!("request id {:?}", started.request_id))?;
        check(self.tokens == tokens, || format!("{} tokens, not {tokens}", self.tokens))?;
        check(self.finish == Some(FinishReason::Length), || format!("finish {:?}", self.finish))?;
        check(self.complete, || "no Completed".into())?;
        check(self.text == text, || format!("the text {:?}, not {text:?}", self.text))
    }
}
