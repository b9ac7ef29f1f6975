// The script of calls by grpc-go.
package main

import (
	"context"
	"errors"
	"io"
	"log"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	v1 "quill.example/interop/gen/inference/v1"
	"quill.example/interop/internal/script"
)

func main() {
	given := script.ParseFlags()
	script.Run(client(given.Address, given.Key), client(given.CutAddress, given.Key), given.Protocol, true)
}

// client makes the generated clients of one server.
func client(address, key string) script.Client {
	connection, err := grpc.NewClient(
		address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(listening{}),
	)
	if err != nil {
		log.Fatal(err)
	}
	llm, tensors := v1.NewLLMServiceClient(connection), v1.NewTensorServiceClient(connection)
	withKey := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
	}
	return script.Client{
		Generate:       unary(llm.Generate, withKey),
		CancelGenerate: unary(llm.CancelGenerate, withKey),
		Embed:          unary(llm.Embed, withKey),
		Tokenize:       unary(llm.Tokenize, withKey),
		ListModels:     unary(llm.ListModels, withKey),
		Infer:          unary(tensors.Infer, withKey),
		StreamGenerate: func(ctx context.Context, request *v1.GenerateRequest) (script.Stream, error) {
			stream, err := llm.StreamGenerate(withKey(ctx), request)
			return serverStream{stream}, err
		},
		Session: func(ctx context.Context) (script.Session, error) {
			stream, err := llm.Session(withKey(ctx))
			return duplex[v1.SessionRequest, v1.SessionResponse]{stream}, err
		},
		StreamInfer: func(ctx context.Context) (script.Tensors, error) {
			stream, err := tensors.StreamInfer(withKey(ctx))
			return duplex[v1.StreamInferRequest, v1.StreamInferResponse]{stream}, err
		},
		Status: told,
	}
}

func unary[Q, R any](
	method func(context.Context, *Q, ...grpc.CallOption) (*R, error), withKey func(context.Context) context.Context,
) script.Unary[Q, R] {
	return func(ctx context.Context, call *script.Call, request *Q) (*R, error) {
		if call == nil {
			call = &script.Call{}
		}
		if !call.Anonymous {
			ctx = withKey(ctx)
		}
		var headers, trailers metadata.MD
		options := []grpc.CallOption{grpc.Header(&headers), grpc.Trailer(&trailers)}
		if call.Gzip {
			options = append(options, grpc.UseCompressor(gzip.Name))
		}
		reply, err := method(context.WithValue(ctx, callKey{}, call), request, options...)
		call.Metadata = metadata.Join(headers, trailers)
		return reply, withMetadata(err, call.Metadata)
	}
}

type callKey struct{}

// listening hears how messages were compressed.
type listening struct{}

func (listening) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (listening) HandleRPC(ctx context.Context, event stats.RPCStats) {
	call, _ := ctx.Value(callKey{}).(*script.Call)
	if call == nil {
		return
	}
	switch event := event.(type) {
	case *stats.OutHeader:
		call.RequestEncoding = event.Compression
	case *stats.InHeader:
		call.ReplyEncoding = event.Compression
	}
}

func (listening) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (listening) HandleConn(context.Context, stats.ConnStats) {}

type serverStream struct {
	stream grpc.ServerStreamingClient[v1.StreamGenerateResponse]
}

// Receive returns the next message, or how the stream ended.
func (s serverStream) Receive() (*v1.StreamGenerateResponse, error) {
	message, err := s.stream.Recv()
	if err == nil || errors.Is(err, io.EOF) {
		return message, err
	}
	headers, _ := s.stream.Header()
	return nil, withMetadata(err, metadata.Join(headers, s.stream.Trailer()))
}

type duplex[Q, R any] struct {
	grpc.BidiStreamingClient[Q, R]
}

// CloseRequest says that nothing more is sent.
func (d duplex[Q, R]) CloseRequest() error { return d.CloseSend() }

// Receive returns the next message, or how the call ended.
func (d duplex[Q, R]) Receive() (*R, error) { return d.Recv() }

// ended is an error with the metadata that came with it.
type ended struct {
	error
	metadata metadata.MD
}

func withMetadata(err error, all metadata.MD) error {
	if err == nil {
		return nil
	}
	return ended{err, all}
}

func told(err error) script.Status {
	var end ended
	if errors.As(err, &end) {
		err = end.error
	}
	failed := status.Convert(err)
	return script.Status{
		Code:     failed.Code(),
		Message:  failed.Message(),
		Details:  failed.Proto().GetDetails(),
		Metadata: end.metadata,
	}
}
